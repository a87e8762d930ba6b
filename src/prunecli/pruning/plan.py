"""`Plan`: what stays, and nothing of how it was chosen. Validated once, before any work.

`ffn`, `kv_heads`, `heads` and `experts` have one list of kept indices per kept layer, empty where a
layer has no such units; `heads` counts query heads of the parent and, where it is not given,
follows `kv_heads`. `None` keeps all.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import sidecar, strict
from prunecli.files.sidecar import Sidecar
from prunecli.files.tensorfile import Tensors
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader, check_buildable

Indices = tuple[int, ...]
BY_LAYER = ("ffn", "kv_heads", "heads", "experts")  # axes with a list per layer


@dataclass(frozen=True)
class Plan:
    """Kept indices per axis; `ragged` allows layers of unequal sizes."""

    layers: Indices | None = None
    hidden: Indices | None = None
    ffn: tuple[Indices, ...] | None = None
    kv_heads: tuple[Indices, ...] | None = None
    heads: tuple[Indices, ...] | None = None
    experts: tuple[Indices, ...] | None = None

    @classmethod
    def from_json(cls, record: Any) -> "Plan":
        """Read a plan from `{"keep": {axis: indices}}`, hand-written or made by `prune`."""
        keep = record.get("keep") if isinstance(record, dict) else None
        if not isinstance(keep, dict):
            raise InputError('a plan is {"keep": {axis: indices}}, this file has no "keep"')
        known = cls.__dataclass_fields__
        unknown = sorted(set(keep) - set(known))
        if unknown:
            raise InputError(f"a plan keeps {', '.join(known)}; this one has '{unknown[0]}'")
        return cls(
            **{axis: _indices(axis, value) for axis, value in keep.items() if value is not None}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON: `{"keep": {axis: indices or null}}`, `experts` if some go."""
        keep = asdict(self)
        if self.experts is None:  # so that plans of other models have the ids that they had
            del keep["experts"]
        return {"keep": keep}

    def check(self, arch: Arch) -> None:
        """Raise InputError unless this plan can be carried out on a model of shape `arch`."""
        _ascending("layers", self.layers, arch.layers)
        _ascending("hidden", self.hidden, arch.hidden)
        layers = self.kept_layers(arch)
        for axis in BY_LAYER:
            lists = getattr(self, axis)
            if lists is None:
                continue
            if len(lists) != len(layers):
                raise InputError(
                    f"the plan has {len(lists)} lists for {axis}, layers kept: {len(layers)}"
                )
            less = any(len(one) < arch.size(axis, i) for one, i in zip(lists, layers, strict=True))
            if less and axis in ("heads", "kv_heads") and not arch.even_heads:
                arch.check_fixed(**{axis: 0})
            for i, indices in enumerate(lists):
                if arch.has(axis, layers[i]):
                    _ascending(f"{axis} of layer {i}", indices, arch.size(axis, layers[i]))
                elif indices:
                    raise InputError(
                        f"the plan keeps {axis} of layer {i}, which has none",
                        "give an empty list for it",
                    )
        self._check_experts(arch)
        for i in (n for n, layer in enumerate(layers) if arch.has("heads", layer)):
            group = arch.group_of(layers[i])
            groups = [head // group for head in self.kept_heads(arch, i)]
            counts = {groups.count(group) for group in self.kept_kv_heads(arch, i)}
            if set(groups) != set(self.kept_kv_heads(arch, i)) or len(counts) != 1:
                raise InputError(
                    f"the plan's heads of layer {i} are not the same number of query heads for "
                    "every kept KV head"
                )

    def check_alone(self) -> None:
        """Raise InputError for what is a plan of no model, whatever its shape."""
        _ascending("layers", self.layers)
        _ascending("hidden", self.hidden)
        counts = {} if self.layers is None else {"layers": len(self.layers)}
        for axis in BY_LAYER:
            lists = getattr(self, axis)
            if lists is None:
                continue
            counts[axis] = len(lists)
            if not any(lists):
                raise InputError(f"the plan keeps no {axis}", "at least one must stay")
            for i, indices in enumerate(lists):
                if indices:  # a layer can have none of an axis
                    _ascending(f"{axis} of layer {i}", indices)
        if len({*counts.values()}) > 1:
            told = ", ".join(f"{count} for {axis}" for axis, count in counts.items())
            raise InputError(f"the plan's numbers of layers differ: {told}")

    def _check_experts(self, arch: Arch) -> None:
        counts = sorted({len(one) for one in self.experts or () if one})
        few = arch.too_few_experts(counts[0]) if counts else None
        if few is not None:
            why, remedy = few
            raise InputError(f"the plan keeps {counts[0]} experts of a layer, and {why}", remedy)
        if len(counts) > 1:
            raise InputError(
                f"the plan keeps {counts[0]} experts of one layer and {counts[-1]} of another",
                "keep as many of every layer: a config.json has one number",
            )
        groups, _ = arch.expert_groups
        for i, kept in enumerate(self.experts or ()):
            each = Counter(e * groups // arch.experts for e in kept)
            if kept and {each[group] for group in range(groups)} != {len(kept) // groups}:
                raise InputError(
                    f"the plan keeps more experts of one group than of another in layer {i}, and "
                    f"the {groups} groups are of one size",
                    "keep as many of every group",
                )

    def kept_layers(self, arch: Arch) -> Indices:
        """Return the kept layers."""
        return tuple(range(arch.layers)) if self.layers is None else self.layers

    def kept_kv_heads(self, arch: Arch, i: int) -> Indices:
        """Return the kept KV heads of the i-th kept layer."""
        return self._all("kv_heads", arch, i) if self.kv_heads is None else self.kv_heads[i]

    def kept_heads(self, arch: Arch, i: int) -> Indices:
        """Return the kept query heads of the i-th kept layer."""
        if self.heads is not None:
            return self.heads[i]
        group = arch.group_of(self.kept_layers(arch)[i])
        return tuple(g * group + j for g in self.kept_kv_heads(arch, i) for j in range(group))

    def kept_ffn(self, arch: Arch, i: int) -> Indices:
        """Return the kept FFN channels of the i-th kept layer."""
        return self._all("ffn", arch, i) if self.ffn is None else self.ffn[i]

    def kept_experts(self, arch: Arch, i: int) -> Indices:
        """Return the kept experts of the i-th kept layer; none where it has none."""
        return self._all("experts", arch, i) if self.experts is None else self.experts[i]

    def _all(self, axis: str, arch: Arch, i: int) -> Indices:
        layer = self.kept_layers(arch)[i]
        return tuple(range(arch.size(axis, layer) if arch.has(axis, layer) else 0))

    def _count(self, axis: str, arch: Arch, i: int) -> int:
        """Return how many units the i-th kept layer keeps, of as many as config.json says.

        A kind of layers can have sizes of its own beside these, such as FFNs twice as wide.
        """
        if getattr(self, axis) is None and (axis != "heads" or self.kv_heads is None):
            return int(getattr(arch, axis)) * arch.has(axis, self.kept_layers(arch)[i])
        kept = {"heads": self.kept_heads, "kv_heads": self.kept_kv_heads, "ffn": self.kept_ffn}
        count = len(kept.get(axis, self.kept_experts)(arch, i))
        return -(-count // arch.times(axis, self.kept_layers(arch)[i])) if axis == "ffn" else count

    def child(self, arch: Arch, biased: bool = False) -> Arch:
        """Return the pruned model's shape.

        Of ragged layers it is the widest, or where transformers refuses that, the next width that
        it takes: they are filled up with zeros anyhow. Raises InputError.
        """
        layers = range(len(self.kept_layers(arch)))
        # without heads in any kept layer, config.json goes on saying how many there were
        widest = max(self._count("kv_heads", arch, i) for i in layers) or arch.kv_heads
        if self.heads is not None or not self.ragged(arch):
            return self._child(arch, biased, widest)
        for kv_heads in range(widest, arch.kv_heads):
            try:
                made = self._child(arch, biased, kv_heads)
                check_buildable(made)
            except InputError:
                continue
            return made
        return self._child(arch, biased, arch.kv_heads)

    def _child(self, arch: Arch, biased: bool, kv_heads: int) -> Arch:
        ffn = [self._count("ffn", arch, i) for i in range(len(self.kept_layers(arch)))]
        heads = kv_heads * arch.group
        if self.heads is not None:
            heads = max(map(len, self.heads)) or arch.heads
        return arch.child(
            layers=None if self.layers is None else list(self.layers),
            hidden=None if self.hidden is None else len(self.hidden),
            ffn=None if self.ffn is None else max(ffn) or None,
            kv_heads=kv_heads,
            heads=heads,
            experts=None if self.experts is None else max(map(len, self.experts)) or None,
            biased=biased,
        )

    def block_params(self, arch: Arch) -> int:
        """Return the block-linear parameters that stay, true counts of ragged layers."""
        return sum(self.layer_params(arch, i) for i in range(len(self.kept_layers(arch))))

    def layer_params(self, arch: Arch, i: int) -> int:
        """Return those of the i-th kept layer."""
        layer = self.kept_layers(arch)[i]
        hidden = arch.hidden if self.hidden is None else len(self.hidden)
        kept = self._count("heads", arch, i), self._count("kv_heads", arch, i)
        ffns = len(self.kept_experts(arch, i)) or 1
        ffn = ffns * arch.ffn_matrices * hidden * len(self.kept_ffn(arch, i))
        # what has neither heads nor such channels is as wide as the residual stream on one side
        others = arch.other_params(layer) * hidden // arch.hidden
        return round(arch.heads_params(hidden, *kept, layer)) + ffn + others

    def counts(self, arch: Arch) -> dict[str, Any]:
        """Return how much is kept: numbers, or one number per layer where layers differ."""
        layers = range(len(self.kept_layers(arch)))
        per_layer = {
            axis: [self._count(axis, arch, i) for i in layers]
            for axis in ("heads", "kv_heads", "ffn", *(("experts",) if arch.experts else ()))
        }
        # layers that have none are no narrower than others
        some = {axis: {*n} - {0} or {0} for axis, n in per_layer.items()}
        even = {
            axis: min(some[axis]) if len(some[axis]) == 1 else n for axis, n in per_layer.items()
        }
        hidden = arch.hidden if self.hidden is None else len(self.hidden)
        return {"layers": len(layers), "hidden": hidden, **even}

    def ragged(self, arch: Arch) -> bool:
        """Return whether layers differ in size."""
        return any(isinstance(count, list) for count in self.counts(arch).values())


def _indices(axis: str, value: Any) -> Any:
    lists = value if axis in BY_LAYER else [value]
    if not isinstance(lists, list) or not all(isinstance(entry, list) for entry in lists):
        raise InputError(f"the plan's {axis} are not lists of indices")
    for index in (index for entry in lists for index in entry):
        if not isinstance(index, int) or isinstance(index, bool):
            raise InputError(f"the plan's {axis} hold {strict.told(index)}, expected integers")
    frozen = tuple(tuple(entry) for entry in lists)
    return frozen if lists is value else frozen[0]


def _ascending(what: str, indices: Indices | None, limit: int | None = None) -> None:
    if indices is None:
        return
    if not indices:
        raise InputError(f"the plan keeps no {what}", "at least one must stay")
    if list(indices) != sorted(set(indices)):
        raise InputError(f"the plan's {what} are not ascending and unique")
    if indices[0] < 0:
        raise InputError(f"the plan's {what} begin at {indices[0]}, expected 0 or more")
    if limit is not None and indices[-1] >= limit:
        raise InputError(f"the plan's {what} reach {indices[-1]}, the model has {limit}")


def read_plan(path: str) -> tuple[Plan, Sidecar | None]:
    """Read a plan, hand-written or made by `--plan-only`."""
    try:
        record = strict.read_value(Path(path))
    except FileNotFoundError:
        raise InputError(
            f"no such plan: '{path}'", "make it with `prunecli prune --plan-only`"
        ) from None
    if isinstance(record, dict) and "kind" in record:
        made = sidecar.read(path, ("plan",))
        return Plan.from_json(made.results), made
    plan = Plan.from_json(record)
    for key in sorted(record.keys() - {"keep"}):
        raise InputError(f"a plan is {{\"keep\": …}} alone, '{path}' has '{key}' too", "remove it")
    return plan, None


def plan_results(plan: Plan, arch: Arch, child: Arch) -> dict[str, Any]:
    """Return what a plan reports; the true counts where layers differ in size."""
    results = {
        "ratio": 1 - plan.block_params(arch) / arch.block_params,
        "kept": plan.counts(arch),
        "ragged": plan.ragged(arch),
        "container": child.config["model_type"],
    }
    if plan.layers is not None:
        results["removed_layers"] = sorted(set(range(arch.layers)) - set(plan.layers))
    return results


@dataclass(frozen=True)
class Selection:
    """What stays of which weights, the means that its biases need, and what else to report."""

    plan: Plan
    weights: Reader
    tensors: Tensors = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
