"""From an amount to exact sizes, or to a pattern of zeros.

Hidden and FFN sizes that come of a ratio, or of a number of parameters, are multiples of
`Amount.multiple`, and the FFN is then the multiple that keeps the ratio nearest. Where none is
asked for, it is the first of MULTIPLES that divides the model's own hidden and FFN sizes and moves
the achieved ratio by less than MOVES from that of exact sizes (multiple 1), which are taken
otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import floor, gcd, isfinite, lcm, sqrt
from pathlib import Path
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import sidecar, strict
from prunecli.methods._base import Method
from prunecli.model import configs
from prunecli.model.arch import UNITS, Arch
from prunecli.model.families._base import CONFIG_KEYS
from prunecli.model.pattern import SparsityPattern
from prunecli.settings import Amount

RAGGED = ("AL-MM", "AL-AM")  # structures that choose across layers
SHAPE_AXES = ("layers", "hidden", "heads", "ffn", "experts")
MULTIPLE_AXES = ("hidden", "ffn")
# units that a model may have in no layer, and those of which a ratio takes as many as are due
OF_SOME = ("heads", "ffn", "experts")
FILLED = ("ffn", "experts")
BLOCK = 32  # weights of a row that llama.cpp's Q8_0 stores together
MULTIPLES = (256, BLOCK)  # 256: those of its K-quants
GROUPED = 8  # channels: in two bytes each, what torch's product of all experts takes at least
MOVES = 0.01  # of the model's block-linear parameters


@dataclass(frozen=True)
class Sizes:
    """The sizes to reach, and the ratio that they were made from (None for exact shapes).

    `experts` is 0 where all stay, or there are none.
    `untouched` are how many of the first and of the last layers keep all heads and channels.
    `multiple` is what hidden and FFN sizes were taken to, None where they were not made here;
    `least` is the least that makes the same ones.
    """

    layers: int
    hidden: int
    kv_heads: int
    ffn: int
    ratio: float | None = None
    untouched: tuple[int, int] = (0, 0)
    multiple: int | None = None
    least: int = 1
    experts: int = 0

    def recorded(self) -> dict[str, Any]:
        """Return what decides the result, and makes it again; equal for equal sizes of a ratio.

        Without a `multiple` among it sizes are exact.
        """
        record = {name: value for name, value in asdict(self).items() if name != "multiple"}
        least = record.pop("least")
        if not self.experts:
            del record["experts"]
        return record if self.ratio is None or least == 1 else {**record, "multiple": least}

    @property
    def axes(self) -> tuple[int, ...]:
        """Layers, hidden size, KV heads, FFN channels, and experts where some go."""
        experts = (self.experts,) if self.experts else ()
        return (self.layers, self.hidden, self.kv_heads, self.ffn, *experts)

    def exist(self, arch: Arch) -> bool:
        """Return whether a model of these sizes can be: of each one, experts for every token."""
        enough = not self.experts or arch.too_few_experts(self.experts) is None
        return min(self.axes) >= 1 and enough

    def widest(self, arch: Arch, structure: str | None) -> "Sizes":
        """Return the most that the widest layer can have, which a container must hold."""
        if not any(self.untouched) and structure not in RAGGED:
            return self
        return replace(self, kv_heads=arch.kv_heads, ffn=arch.ffn)


def check_supported(method: Method, arch: Arch) -> None:
    """Raise InputError where a method has no formula for what a model's layers are made of."""
    why = None
    if method.rotates:
        behind = any(map(arch.post_norms, arch.sorts))
        unrotatable = "a rotation cannot pass its post-sublayer norms" if behind else None
        why = arch.family.fixed.get("hidden", unrotatable)
    elif arch.experts and "ffn" in method.axes:
        why = "it compares the channels of one FFN in a layer, and here every expert is one"
    elif "experts" in method.axes and not arch.experts:
        why = "its layers have no experts"
    if why is not None:
        raise InputError(
            f"'{method.name}' does not support {arch.family.name}: {why}", "use another method"
        )


def resolve_pattern(amount: Amount, arch: Arch) -> SparsityPattern:
    """Return where zeros go and how many, for methods that prune weights.

    Raises UsageError for amounts that are no sparsity, InputError for widths that N:M does not
    divide.
    """
    shapes = [name for name in (*SHAPE_AXES, "params", "arch") if getattr(amount, name) is not None]
    if shapes:
        raise UsageError(
            f"--{shapes[0]} asks for a shape, but this method sets weights to zero",
            "use --ratio or --sparsity N:M",
        )
    if (amount.multiple or 1) > 1:
        raise UsageError(
            f"--multiple {amount.multiple} is for sizes, but this method sets weights to zero",
            "leave it out",
        )
    kind = amount.sparsity or "unstructured"
    if kind == "unstructured":
        if amount.ratio is None:
            raise UsageError("no amount was given", "use --ratio R or --sparsity N:M")
        return SparsityPattern(_in_range(amount.ratio))
    groups = SparsityPattern.of_groups(kind)
    if groups is None:
        raise UsageError(
            f"--sparsity '{kind}' is neither 'unstructured' nor N:M with 0 < N < M",
            "2:4 keeps 2 of every 4 weights",
        )
    if amount.ratio is not None:
        raise UsageError(f"--sparsity {kind} implies the ratio", "leave out --ratio")
    for name, tensor in arch.tensors().items():
        if tensor.template in set(arch.block_linears()) and tensor.shape[1] % groups.group:
            raise InputError(
                f"--sparsity {kind}: '{name}' has {tensor.shape[1]} inputs, not a multiple of "
                f"{groups.group}",
                "choose another pattern",
            )
    return groups


def _sizes(
    method: Method, options: Mapping[str, Any], amount: Amount, arch: Arch, cut: float = 1.0
) -> Sizes:
    """Return the sizes that `amount` means for the share of layers that may be cut."""
    structure = options.get("structure")
    if amount.sparsity is not None:
        raise UsageError(
            f"--sparsity is for methods that set weights to zero, '{method.name}' removes "
            f"{method.granularity}",
            "use --ratio",
        )
    shape = {axis: getattr(amount, axis) for axis in SHAPE_AXES if getattr(amount, axis)}
    if amount.arch is not None:
        shape = _read_shape(amount.arch, arch)
    amounts = [bool(shape), amount.ratio is not None, amount.params is not None]
    if sum(amounts) != 1:
        raise UsageError(
            "no amount was given" if not any(amounts) else "more than one amount was given",
            f"use one of --ratio, --params, --arch, {_flags(method)}",
        )
    _check_there([*shape] or [axis for axis in FILLED if axis in method.axes], method, arch)
    if shape:
        sizes = _exact(method, shape, arch)
    elif amount.ratio is not None:
        target = round(arch.block_params * (1 - _in_range(amount.ratio)), 6)
        sizes = _for_block_params(
            method, target, amount.ratio, arch, structure, amount.multiple or 1
        )
    else:
        assert amount.params is not None
        sizes = _for_params(method, options, amount.params, arch, amount.multiple or 1)
    _check_protected(method, options, sizes.layers, arch)
    return sizes if sizes.ratio is None else _reached(sizes, method, arch, structure, cut)


def _check_there(axes: Sequence[str], method: Method, arch: Arch) -> None:
    """Raise InputError unless each axis has units in a layer; those beside OF_SOME are in all."""
    for axis in axes:
        if axis in OF_SOME and not arch.with_units(axis):
            others = ", ".join(f"--{one}" for one in method.axes if one != axis)
            units = UNITS.get(axis, axis)
            raise InputError(
                f"no layer of this model has {units}, which '{method.name}' would remove",
                f"use {others}" if others else "use another method",
            )


def resolve_sizes(method: Method, options: Mapping[str, Any], amount: Amount, arch: Arch) -> Sizes:
    """Return the sizes that `amount` means for a structured method with these options.

    Where a method leaves some layers as they are, the others lose the more, so that the ratio is
    that of the whole model. Raises UsageError for amounts of the wrong kind, InputError for those
    that cannot be reached, with the nearest that can, or that protected layers had to go for.
    """
    if (amount.multiple or 1) > 1:
        _check_multiple(method, options, amount, arch)

    def of(multiple: int) -> Sizes | None:
        try:
            return _of_multiple(method, options, replace(amount, multiple=multiple), arch)
        except InputError:
            return None

    sizes = _of_multiple(method, options, amount, arch)
    if not arch.even_heads:
        arch.check_fixed(kv_heads=sizes.kv_heads)
    if sizes.multiple is None:
        return sizes
    if amount.multiple is None and options.get("structure") not in RAGGED:
        usable = (of(multiple) for multiple in MULTIPLES if divides(multiple, arch))
        sizes = next((near for near in usable if near and _is_near(near, sizes, arch)), sizes)
    return _of_least(sizes, of, arch)


def divides(multiple: int, arch: Arch) -> bool:
    """Return whether hidden and FFN sizes of a model are multiples of a number."""
    return not any(getattr(arch, axis) % multiple for axis in MULTIPLE_AXES)


def _is_near(sizes: Sizes, exact: Sizes, arch: Arch) -> bool:
    moved = abs(block_params(sizes, arch) - block_params(exact, arch))
    return moved < MOVES * arch.block_params


def _of_least(sizes: Sizes, of: Callable[[int], Sizes | None], arch: Arch) -> Sizes:
    """Return equal sizes as the least multiple makes them, so that their records are equal.

    Powers of two come first.
    """
    assert sizes.multiple is not None
    kept = {axis: getattr(sizes, axis) for axis in MULTIPLE_AXES}
    common = gcd(*(size for axis, size in kept.items() if size < getattr(arch, axis)))
    powers = [1 << power for power in range(max(MULTIPLES).bit_length())]
    for least in [*powers, *range(1, sizes.multiple)]:
        if common % least == 0:
            same = sizes if least == sizes.multiple else of(least)
            if same is not None and same.axes == sizes.axes:
                return replace(same, multiple=sizes.multiple, least=least)
    return replace(sizes, least=sizes.multiple)


def _check_multiple(method: Method, options: Mapping[str, Any], amount: Amount, arch: Arch) -> None:
    """Raise UsageError or InputError where no size can be made a multiple."""
    multiple = f"--multiple {amount.multiple}"
    axes = [axis for axis in MULTIPLE_AXES if axis in method.axes]
    if not axes:
        raise UsageError(
            f"{multiple}: '{method.name}' removes {method.granularity}, hidden and FFN sizes stay",
            "leave it out",
        )
    if amount.ratio is None and amount.params is None:
        raise UsageError(
            f"{multiple} is for sizes made from --ratio or --params, exact ones are as given",
            "leave it out",
        )
    if options.get("structure") in RAGGED:
        raise UsageError(
            f"{multiple}: --structure {options['structure']} gives every layer a size of its own",
            "use --structure UL-UM or UL-MM",
        )
    for axis in axes:
        if amount.multiple is not None and amount.multiple > getattr(arch, axis):
            raise InputError(
                f"{multiple}: the model has {axis} {getattr(arch, axis)}", "choose a smaller one"
            )


def _of_multiple(method: Method, options: Mapping[str, Any], amount: Amount, arch: Arch) -> Sizes:
    """Return the sizes that an amount means in its own multiple, exact ones where it has none."""
    ends = protected_layers(method, options)
    if not any(ends):
        return _sizes(method, options, amount, arch)
    cut = arch.layers - sum(ends)
    if cut < 1:
        raise InputError(
            f"--protect {ends[0]},{ends[1]} leaves none of {arch.layers} layers to prune",
            "protect fewer",
        )
    if amount.params is not None:
        raise UsageError("--params and --protect do not go together", "use --ratio")
    if amount.ratio is not None:
        inner = _in_range(amount.ratio) * arch.layers / cut
        if inner >= 1:
            raise InputError(
                f"--ratio {amount.ratio:g} cannot come from {cut} of {arch.layers} layers",
                f"protect fewer, or stay below {cut / arch.layers:g}",
            )
        amount = replace(amount, ratio=inner)
    sizes = _sizes(method, options, amount, arch, cut / arch.layers)
    return replace(sizes, ratio=None, untouched=ends)


def protected_layers(method: Method, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of the first and of the last layers keep all heads and channels."""
    if method.protects is None or "layers" in method.axes:
        return 0, 0
    return method.protects(options)


def _check_protected(method: Method, options: Mapping[str, Any], layers: int, arch: Arch) -> None:
    if method.protects is None or "layers" not in method.axes:
        return
    first, last = method.protects(options)
    gone, most = arch.layers - layers, max(0, arch.layers - first - last)
    if gone > most:
        raise InputError(
            f"{gone} of {arch.layers} layers would go, but '{method.name}' protects the first "
            f"{first} and the last {last}, so at most {most} can",
            "remove less" + (", or protect fewer: --protect" if method.options else ""),
        )


def _flags(method: Method) -> str:
    return ", ".join(f"--{axis}" for axis in method.axes)


def _in_range(ratio: float) -> float:
    if not (isfinite(ratio) and 0 < ratio < 1):
        raise UsageError(f"--ratio {ratio:g} is not between 0 and 1", "0.5 removes half")
    return ratio


def _read_shape(path: str, arch: Arch) -> dict[str, int]:
    """Return the sizes in an arch.json: our own, or plain `{"hidden": …}`, or config.json keys.

    A config.json, and what other versions write, may hold more than sizes; a plain one may not.
    """
    try:
        record = strict.read_value(Path(path))
    except FileNotFoundError:
        raise InputError(f"no such shape: '{path}'", "check the path") from None
    own = isinstance(record, dict) and "kind" in record
    if own:
        record = sidecar.read(path, ("arch",)).results.get("arch")
    record = arch.family.renamed(record) if isinstance(record, dict) else {}
    shape = _sizes_in(path, record, arch, plain=not own and "model_type" not in record)
    changed = {axis: size for axis, size in shape.items() if size != getattr(arch, axis)}
    if not changed:
        raise InputError(f"'{path}' names no size of {', '.join(SHAPE_AXES)} unlike the model's")
    return changed


def _sizes_in(path: str, record: Mapping[str, Any], arch: Arch, plain: bool) -> dict[str, int]:
    """Return the size of each axis that a record names, under its name here or in a config."""
    # beside experts, and in layers of other kinds, the usual keys are those of something else
    usual = {} if arch.experts or arch.family.kinds else CONFIG_KEYS
    names = {
        name: axis
        for axis in (*SHAPE_AXES, "kv_heads")
        for name in (axis, usual.get(axis, axis), arch.family.key(axis))
    }
    shape: dict[str, int] = {}
    for name, size in record.items():
        if name not in names:
            if plain:
                known = suggest(name, list(names))
                raise InputError(f"'{path}' names '{name}', which is no size of a shape{known}")
            continue
        axis = names[name]
        rule = arch.family.axes.get(axis)
        if rule is not None and "model_type" in record:
            configs.check_numbers(record)
            size = rule(lambda key: record.get(key, arch.family.defaults.get(key)))
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(
                f"'{path}': {axis} is {strict.told(size)}, expected a positive integer"
            )
        if shape.setdefault(axis, size) != size:
            raise InputError(f"'{path}' says that {axis} are {shape[axis]} and {size}")
    heads, kv_heads = shape.get("heads", arch.heads), shape.pop("kv_heads", None)
    if plain and kv_heads is not None and kv_heads * arch.group != heads:
        raise InputError(
            f"'{path}': {kv_heads} KV heads for {heads} heads, but {arch.group} share one here",
            "name heads alone",
        )
    return shape


def _exact(method: Method, shape: dict[str, int], arch: Arch) -> Sizes:
    for axis, size in shape.items():
        if axis not in method.axes:
            raise UsageError(
                f"'{method.name}' removes {method.granularity}, it cannot change {axis}",
                f"use {_flags(method)}",
            )
        if not 1 <= size <= getattr(arch, axis):
            raise InputError(f"--{axis} {size}: the model has {getattr(arch, axis)}")
    if all(size == getattr(arch, axis) for axis, size in shape.items()):
        asked = ", ".join(f"--{axis} {size}" for axis, size in shape.items())
        raise InputError(f"{asked}: the model has this size already", "ask for less")
    few = arch.too_few_experts(shape["experts"]) if "experts" in shape else None
    if few is not None:
        why, remedy = few
        raise InputError(f"--experts {shape['experts']}: {why}", remedy)
    heads = shape.get("heads", arch.heads)
    if heads % arch.group:
        nearest = max(1, round(heads / arch.group)) * arch.group
        raise InputError(
            f"--heads {heads} is not a multiple of the {arch.group} query heads per KV head",
            f"the nearest is {nearest}",
        )
    return Sizes(
        shape.get("layers", arch.layers),
        shape.get("hidden", arch.hidden),
        heads // arch.group,
        shape.get("ffn", arch.ffn),
        experts=shape.get("experts", 0),
    )


def _layer_params(
    arch: Arch, hidden: float, kv_heads: float, ffn: float, experts: int = 0
) -> float:
    """Return the linear parameters of one layer of these sizes, with all experts if not told.

    Where layers are of several kinds, it is their mean.
    """
    heads = arch.heads_params(hidden, arch.group * kv_heads, kv_heads) * _share(arch, "heads")
    of_ffn = (experts or arch.ffns) * arch.ffn_matrices * ffn * _share(arch, "ffn")
    return heads + hidden * (of_ffn + _others(arch))


def _share(arch: Arch, axis: str) -> float:
    """Return the share of the layers that have heads, or FFN channels; wider ones count more."""
    return sum(arch.times(axis, i) for i in arch.with_units(axis)) / arch.layers


def _others(arch: Arch) -> float:
    """Return what a mean layer has beside heads and FFN channels, for each hidden channel."""
    return arch.other_block_params / arch.layers / arch.hidden


def _for_block_params(
    method: Method,
    target: float,
    ratio: float,
    arch: Arch,
    structure: str | None,
    multiple: int,
) -> Sizes:
    """Return default sizes that leave about `target` block-linear parameters."""
    per_layer = target / arch.layers
    if method.axes == ("layers",):
        layers = floor(target / (arch.block_params / arch.layers) + 0.5)
        return Sizes(layers, arch.hidden, arch.kv_heads, arch.ffn, ratio)
    if method.axes == ("experts",):
        rest = per_layer - _layer_params(arch, arch.hidden, arch.kv_heads, 0)
        one = arch.ffn_matrices * arch.hidden * arch.ffn * _share(arch, "ffn")
        groups, _ = arch.expert_groups
        stay = groups * max(1, floor(rest / one / groups + 0.5))
        return Sizes(arch.layers, arch.hidden, arch.kv_heads, arch.ffn, ratio, experts=stay)
    whole = Sizes(arch.layers, arch.hidden, arch.kv_heads, arch.ffn, ratio, multiple=multiple)
    step = lcm(_width_step(arch, multiple), GROUPED if arch.experts else 1)
    if method.axes == ("hidden",):
        # what is no hidden channel wide stays: latent attention has such
        stays = arch.layers * _layer_params(arch, 0, arch.kv_heads, arch.ffn)
        share = (target - stays) / (arch.block_params - stays)
        hidden = _nearest_size(arch.hidden * share, arch.hidden, step)
        return replace(whole, hidden=hidden)
    if "hidden" in method.axes and "heads" not in method.axes:
        # h s (r + m f s) = per_layer, for one factor s of hidden and FFN, and the rest h r
        rest = _layer_params(arch, arch.hidden, arch.kv_heads, 0)
        mlp = arch.ffn_matrices * arch.hidden * arch.ffn * _share(arch, "ffn")
        factor = (sqrt(rest**2 + 4 * mlp * per_layer) - rest) / (2 * mlp)
        hidden = max(step, _nearest_size(arch.hidden * factor, arch.hidden, step))
        return _fill_ffn(replace(whole, hidden=hidden), per_layer, arch)
    # Fractions such as 0.7 * 10 fall just short in floating point
    kv_heads = arch.kv_heads - floor(ratio * arch.kv_heads + 1e-9)
    if structure == "UL-UM":
        ffn = arch.ffn - floor(ratio * arch.ffn + 1e-9)
        return replace(whole, kv_heads=kv_heads, ffn=_nearest_size(ffn, arch.ffn, multiple))
    return _fill_ffn(replace(whole, kv_heads=kv_heads), per_layer, arch)


def _for_ratio(
    method: Method, ratio: float, arch: Arch, structure: str | None, multiple: int
) -> Sizes:
    target = arch.block_params * (1 - ratio)
    return _for_block_params(method, target, ratio, arch, structure, multiple)


def _fill_ffn(sizes: Sizes, per_layer: float, arch: Arch) -> Sizes:
    """Return `sizes` with the FFN width that leaves about `per_layer` parameters a layer.

    It is the nearest multiple, and of exact sizes the least that leaves no fewer.
    """
    multiple = sizes.multiple or 1
    rest = per_layer - _layer_params(arch, sizes.hidden, sizes.kv_heads, 0)
    ffn = rest / (arch.ffn_matrices * sizes.hidden * _share(arch, "ffn"))
    if multiple == 1:
        ffn = arch.ffn - floor(arch.ffn - ffn + 1e-9)
    return replace(sizes, ffn=_nearest_size(ffn, arch.ffn, multiple))


def _nearest_size(size: float, whole: int, multiple: int) -> int:
    """Return the multiple nearest to a size, maybe 0; or all of it, where that is as near."""
    nearest = min(floor(size / multiple + 0.5), whole // multiple) * multiple
    return whole if whole - size <= abs(size - nearest) else nearest


def _width_step(arch: Arch, multiple: int) -> int:
    """Return what hidden sizes are multiples of.

    A container may want those that the heads divide. Exact sizes keep to the model's own; multiples
    may go into another that holds the same, where there is one.
    """
    if not arch.family.hidden_divides:
        return multiple
    if multiple > 1:
        try:
            arch.child(hidden=multiple)
        except InputError:
            pass
        else:
            return multiple
    return lcm(arch.heads, multiple)


def _possible(sizes: Sizes, arch: Arch) -> bool:
    experts = (arch.experts,) if sizes.experts else ()
    whole = (arch.layers, arch.hidden, arch.kv_heads, arch.ffn, *experts)
    return sizes.exist(arch) and sizes.axes != whole


def _reached(sizes: Sizes, method: Method, arch: Arch, structure: str | None, cut: float) -> Sizes:
    """Return `sizes`, or raise InputError with the nearest ratio that can be reached.

    Ratios in the message are those of the whole model, of whose layers the share `cut` is cut.
    """
    ratio = sizes.ratio
    assert ratio is not None
    if _possible(sizes, arch):
        return sizes
    multiple = sizes.multiple or 1
    nearest = _nearest(ratio, method, arch, structure, multiple)
    within = f" in multiples of {multiple}" if multiple > 1 else ""
    if nearest is None:
        raise InputError(
            f"--ratio {ratio * cut:g} cannot be reached{within}: the model is too small",
            "choose a smaller --multiple" if within else "",
        )
    reached = 1 - block_params(nearest, arch) / arch.block_params
    raise InputError(
        f"--ratio {ratio * cut:g} cannot be reached by '{method.name}' on this model{within}",
        f"the nearest reachable ratio is {reached * cut:g}",
    )


def _nearest(
    ratio: float, method: Method, arch: Arch, structure: str | None, multiple: int
) -> Sizes | None:
    """Return the possible sizes nearest to a ratio that cannot be reached."""

    def at(candidate: float) -> Sizes:
        return _for_ratio(method, candidate, arch, structure, multiple)

    # what is out of reach lies at the ends: bisect from the asked ratio towards the middle
    out, inside = ratio, 0.5
    if not _possible(at(inside), arch):
        return None
    for _ in range(40):
        middle = (out + inside) / 2
        out, inside = (out, middle) if _possible(at(middle), arch) else (middle, inside)
    return at(inside)


def block_params(sizes: Sizes, arch: Arch) -> float:
    """Return the block-linear parameters of a model of these sizes."""
    whole = sum(sizes.untouched)
    cut = _layer_params(arch, sizes.hidden, sizes.kv_heads, sizes.ffn, sizes.experts)
    return (sizes.layers - whole) * cut + whole * arch.block_params / arch.layers


def extremes(sizes: Sizes, arch: Arch) -> tuple[Arch, Arch]:
    """Return the largest and the smallest model of these sizes, by which layers are left."""
    heaviest, lightest = arch.heaviest(sizes.layers), arch.lightest(sizes.layers)
    return _left(heaviest, sizes, arch), _left(lightest, sizes, arch)


def _left(layers: list[int], sizes: Sizes, arch: Arch) -> Arch:
    return arch.child(
        layers=layers,
        hidden=sizes.hidden,
        kv_heads=sizes.kv_heads,
        ffn=sizes.ffn,
        experts=sizes.experts or None,
    )


def _total(sizes: Sizes, arch: Arch) -> int:
    return _left(arch.heaviest(sizes.layers), sizes, arch).total_params


def _for_params(
    method: Method, options: Mapping[str, Any], params: float, arch: Arch, multiple: int
) -> Sizes:
    """Return the default sizes at the smallest ratio that leaves at most `params` parameters."""
    if not 0 < params < arch.total_params:
        raise InputError(
            f"--params {params:g} is not below the model's {arch.total_params} parameters"
        )
    structure = options.get("structure")
    known: dict[tuple[int, ...], bool] = {}

    def at(ratio: float) -> Sizes:
        return _for_ratio(method, ratio, arch, structure, multiple)

    def fits(sizes: Sizes) -> bool:
        if sizes.axes not in known:
            known[sizes.axes] = not sizes.exist(arch) or _total(sizes, arch) <= params
        return known[sizes.axes]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    sizes = at(high)
    if not _possible(sizes, arch) or _total(sizes, arch) > params:
        nearest = _nearest(1.0, method, arch, structure, multiple)
        if nearest:
            _check_protected(method, options, nearest.layers, arch)
        remedy = f"the nearest is {_total(nearest, arch)}" if nearest else "the model is too small"
        raise InputError(
            f"--params {params:g} cannot be reached by '{method.name}' on this model", remedy
        )
    return sizes
