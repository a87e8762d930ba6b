"""The tensors of a model and their axes, by how shapes change with sizes."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.derive import kinds
from prunecli.model.derive.defaults import default
from prunecli.model.derive.draft import EXPERTS, LAYERS, OTHERS, SIZES, Draft
from prunecli.model.derive.forward import Seen, equal, random_model
from prunecli.model.families._base import INNER, OF_EXPERTS, Axes

if TYPE_CHECKING:
    Shapes = Mapping[str, tuple[int, ...]]

IDLE = (
    "tie_word_embeddings",
    "use_cache",
    "output_router_logits",
)  # flags that say nothing of the layers


LENGTHS: Mapping[str, Callable[[Mapping[str, int]], int]] = {
    "vocab": lambda s: s["vocab"],
    "hidden": lambda s: s["hidden"],
    "ffn": lambda s: s["ffn"],
    "ffn+ffn": lambda s: 2 * s["ffn"],
    "heads": lambda s: s["heads"] * s["head_dim"],
    "kv_heads": lambda s: s["kv_heads"] * s["head_dim"],
    "gated_heads": lambda s: 2 * s["heads"] * s["head_dim"],
    "qkv_by_head": lambda s: 3 * s["heads"] * s["head_dim"],
    "heads+kv_heads+kv_heads": lambda s: (s["heads"] + 2 * s["kv_heads"]) * s["head_dim"],
    "head_dim": lambda s: s["head_dim"],
    "each_head": lambda s: s["heads"],
    "experts": lambda s: s["experts"],
    "one": lambda s: 1,
}


OF_HEADS = (
    "heads", "kv_heads", "gated_heads", "qkv_by_head", "heads+kv_heads+kv_heads", "each_head",
)  # fmt: skip


class Built(NamedTuple):
    """Shapes of all tensors, one size changed at a time; their names by template."""

    shapes: "Sequence[Shapes]"
    names: dict[str, list[str]]


class Tables:
    """The tensors of a model and their axes."""

    def __init__(self, made: Draft, seen: Seen) -> None:
        self.made, self.seen = made, seen
        base = made.shapes(made.config)
        made.lists = kinds.told_apart(made, self._layers(base))
        self.names = self._named(base)
        self._check_dimensions(base)
        self.own = kinds.Sizes(made)
        axes = [axis for axis in OTHERS if axis in made.keys]
        self.sizes = [self._whole({}), *(self._whole({axis: OTHERS[axis]}) for axis in axes)]
        self.sizes += [self.sizes[0]] * len(self.own.changes)
        self.changes = [{}, *(made.changed(axis, OTHERS[axis]) for axis in axes)]
        self.changes += [{key: size} for key, size in self.own.changes.items()]
        self.offset = made.fields.get("position_offset", 0)
        self.many = self._built({})
        self._sort_linears()

    def _check_dimensions(self, shapes: "Shapes") -> None:
        """Raise InputError for a tensor of more than two dimensions, but for a convolution's."""
        from torch import nn

        for template, (name, *_) in self.names.items():
            if "{e}" in template:
                continue
            module = self.seen.model.get_submodule(name.rpartition(".")[0])
            if (dimensions := len(shapes[name])) > 2 and not isinstance(module, nn.Conv1d):
                raise self.made.refused(f"'{template}' has {dimensions} dimensions")

    def _whole(self, changed: dict[str, int]) -> dict[str, int]:
        """Return all sizes, with those that the class has no key for as it makes them."""
        sizes = {**SIZES, **EXPERTS, **changed}
        if "kv_heads" not in self.made.keys:
            sizes["kv_heads"] = sizes["heads"]
        if "head_dim" not in self.made.keys:
            sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        return sizes

    def _built(self, flags: Mapping[str, Any]) -> Built:
        config = {**self.made.config, **flags}
        shapes = [self.made.shapes({**config, **change}) for change in self.changes]
        return Built(shapes, self._named(shapes[0]))

    def _layers(self, shapes: "Shapes") -> list[list[str]]:
        """Return the names of the tensors of each layer, within it."""
        return [
            [name.removeprefix(inside) for name in shapes if name.startswith(inside)]
            for inside in map(self.seen.layer, range(LAYERS))
        ]

    def _named(self, shapes: "Shapes") -> dict[str, list[str]]:
        """Return the tensors by template, with `{i}` for the layer; layers of a kind are alike."""
        layers = self._layers(shapes)
        if kinds.told_apart(self.made, layers) != self.made.lists:
            raise self.made.refused("of which kinds its layers are depends on its sizes")
        root = [name for name in shapes if self.seen.own_name(name) is None]
        first, last = self.made.fields["embedding"], self.made.fields["head"]
        root.sort(key=lambda name: (not name.startswith(f"{first}."), name.startswith(f"{last}.")))
        found = {root[0]: root[:1]}
        for i, names in enumerate(layers):
            for name in names:
                template = f"{self.seen.layer('{i}')}{self._of_any(name)}"
                found.setdefault(template, []).append(f"{self.seen.layer(i)}{name}")
        return {**found, **{name: [name] for name in root[1:]}}

    def _of_any(self, name: str) -> str:
        """Return a name within a layer, with `{e}` for the expert."""
        experts = self.made.experts
        if experts is None or not name.startswith(f"{experts.module}."):
            return name
        number, _, own = name.removeprefix(f"{experts.module}.").partition(".")
        return f"{experts.module}.{{e}}.{own}" if number.isdecimal() else name

    def _lengths(self, template: str, many: Built) -> list[tuple[int, ...]]:
        """Return how long each dimension of a tensor is, as sizes change."""
        names = many.names[template]
        shapes = [{shapes.get(name) for name in names} for shapes in many.shapes]
        if any(None in some for some in shapes):
            raise self.made.refused(f"whether it has '{template}' depends on its sizes")
        if any(len(some) > 1 for some in shapes):
            raise self.made.refused(f"'{template}' has not one shape in all layers")
        return [*zip(*(shape for some in shapes for shape in some if shape), strict=True)]

    def _candidates(self, template: str, many: Built) -> list[list[str]]:
        """Return for each dimension of a tensor the axes that it changes as."""
        found = []
        for lengths in self._lengths(template, many):
            fits = [axis for axis, rule in LENGTHS.items() if (*map(rule, self.sizes),) == lengths]
            if self.made.experts is None and "experts" in fits:
                fits.remove("experts")
            if lengths == tuple(sizes["positions"] + self.offset for sizes in self.sizes):
                fits.append("positions")
            found.append(fits)
        return found

    def _sort_linears(self) -> None:
        """Find which linears are those of attention, of FFNs and of other mixers, by input."""
        up: dict[tuple[str, ...], None] = {}
        down: dict[tuple[str, ...], None] = {}
        if (experts := self.made.experts) is not None:
            linears = tuple(f"{experts.module}.{{e}}.{linear}" for linear in experts.linears)
            up, down = {linears[:-1]: None}, {linears[-1:]: None}
        mixers: dict[tuple[tuple[str, ...], ...], list[int]] = {}
        told = []
        for i in range(LAYERS):
            rest = []
            for group in map(tuple, self.seen.groups(i)):
                told.append(" ".join(group))
                out, read = self._linear(group[0])
                if experts is not None:
                    # not a router, nor the gate of an expert that all tokens take
                    if not {"experts", "one"} & {*out}:
                        rest.append(group)
                elif "ffn" in read:
                    down[group] = None
                elif {"ffn", "ffn+ffn"} & {*out}:
                    up[group] = None
                else:
                    rest.append(group)
            for mixer in _apart(rest):
                mixers.setdefault(mixer, []).append(i)
        attention = [mixer for mixer in mixers if self._makes_heads(mixer)]
        if (
            [len(mixer) for mixer in attention] != [2]
            or len(up) != 1
            or [len(group) for group in down] != [1]
        ):
            raise self.made.refused(
                "the linears of a layer, by what they read, are not those of attention and of one "
                f"FFN: {'; '.join(dict.fromkeys(told)) or 'none'}"
            )
        ((makes, writes),) = attention
        self.inputs = (makes, writes, *up, *down)
        self.beside: dict[str, tuple[tuple[str, ...], ...]] = {}
        self.attending = {*mixers[attention[0]]}
        self.mixing = {mixer[-1][0]: {*having} for mixer, having in mixers.items()}
        for mixer, having in mixers.items():
            if mixer in attention:
                continue
            reading, last = mixer[:-1], mixer[-1]
            # what is beside attention, where an FFN has experts, is another FFN
            ffn = experts is not None and bool(self.attending & {*having})
            first, second = ("gate", "down") if ffn else ("q", "o")
            if len(last) != 1 or not reading or "hidden" not in self._linear(last[0])[0]:
                raise self.made.refused(
                    "a mixer has not one linear that writes to the residual stream: "
                    f"{' '.join(last)}"
                )
            self.beside[first] = (*self.beside.get(first, ()), *reading)
            self.beside[second] = (*self.beside.get(second, ()), last)
        beside = (*self.beside.get("o", ()), *self.beside.get("down", ()))
        self.written = tuple(group[0] for group in (writes, *down, *beside))
        _, read = self._linear(writes[0])
        self.narrows = "heads" in read  # whether it reads the channels of the heads

    def _linear(self, module: str) -> list[list[str]]:
        """Return the axes that the dimensions of a linear of a layer change as: out, in."""
        return self._candidates(f"{self.seen.layer('{i}')}{module}.weight", self.many)

    def _makes_heads(self, mixer: tuple[tuple[str, ...], ...]) -> bool:
        """Return whether what a mixer's first linears make is as wide as heads."""
        outs = [self._linear(module)[0] for module in mixer[0]]
        if len(outs) > 1 and "kv_heads" in self.made.keys:
            return any("kv_heads" in out for out in outs)
        return any({*OF_HEADS} & {*out} for out in outs)

    def _mixer_of(self, template: str) -> str | None:
        """Return the module of the mixer that a tensor is a part of, None for one of no mixer.

        In layers of other kinds it can be called as attention is.
        """
        own, layer = self.seen.own_name(template) or "", self.seen.layer
        attention = self.inputs[1][0].rpartition(".")[0]
        # a bias is where its linear is
        weight = f"{template.rpartition('.')[0]}.weight"
        names = self.names.get(template) or self.names.get(weight, [])
        if "{e}" in template:
            return None
        for (writer,) in self.beside.get("o", ()):
            holder = writer.rpartition(".")[0]
            others = {*range(LAYERS)} - self.mixing[writer]
            others |= self.attending if holder == attention else set()
            elsewhere = any(name.startswith(tuple(map(layer, others))) for name in names)
            if own.startswith(f"{holder}.") and not elsewhere:
                return holder
        return None

    def _ffn_of(self, template: str) -> str | None:
        """Return what an axis of an FFN beside experts is called, None for what is not of one."""
        module = (self.seen.own_name(template) or "").rpartition(".")[0]
        for group in (*self.beside.get("gate", ()), *self.beside.get("down", ())):
            if module in group:
                holder = module.rpartition(".")[0]
                return f"{holder.rpartition('.')[2]}_ffn"
        return None

    def fixed(self) -> dict[str, str]:
        """Return that experts' channels stay, and hidden ones that a mixer's own are as many as."""
        found = {} if self.made.experts is None else {"ffn": OF_EXPERTS}
        reading = {module for group in self.beside.get("q", ()) for module in group}
        writing = {module for group in self.beside.get("o", ()) for module in group}
        for template, axes in self.tensors.items():
            if (mixer := self._mixer_of(template)) is None:
                continue
            module = (self.seen.own_name(template) or "").rpartition(".")[0]
            outside = (0,) if module in writing else (1,) if module in reading else ()
            inner = {axis for d, axis in enumerate(axes) if d not in outside}
            if inner & {"hidden", *self.own.following}:
                return {**found, "hidden": INNER.format(mixer.rpartition(".")[2])}
        return found

    def _axes(self, template: str, many: Built, flags: Mapping[str, Any]) -> Axes:
        """Return the axes of a tensor."""
        found = self._candidates(template, many)
        lengths = self._lengths(template, many)
        name = many.names[template][0]
        module = (self.seen.own_name(template) or template).rpartition(".")[0]
        chosen = []
        for d, fits in enumerate(found):
            ffn = self._ffn_of(template)
            if ffn or self._mixer_of(template):
                fits = [axis for axis in fits if axis in ("hidden", "one")]
            axis = self._one(module, d, fits)
            if not axis and self.seen.own_name(template):
                axis = self.own.axis(name, d, lengths[d], flags, ffn)
            if not axis:
                size = many.shapes[0][name][d]
                raise self.made.refused(
                    f"dimension {d} of '{template}' is no axis of a family ({size} in a tiny model)"
                )
            # as wide as hidden channels are, where the class has no other way
            chosen.append("heads" if d == 1 and module in self.inputs[1] else axis)
        return tuple(chosen)

    def _one(self, module: str, dimension: int, fits: list[str]) -> str:
        """Return one of the axes that fit, "" if none does: those of heads where heads are meant.

        Where a class has no key for a size, axes are as long as each other.
        """
        if len(fits) < 2:
            return "".join(fits)
        (first, *_), out, _, _ = self.inputs
        makes_heads = module in self.inputs[0] and dimension == 0
        if makes_heads or (module in out and dimension == 1) or self._norms_heads(module):
            own = "heads" if module == first or module in out else "kv_heads"
            return next(axis for axis in (own, *fits) if axis in fits)
        return "hidden" if "hidden" in fits else fits[0]

    def _norms_heads(self, module: str) -> bool:
        """Return whether a module reads what one of those that make heads has given."""
        taken = [call.taken for call in self.seen.called(module)]
        return any(
            equal(call.given, one)
            for name in self.inputs[0]
            for call in self.seen.called(name)
            for one in taken
        )

    def fields(self) -> dict[str, Any]:
        """Return the tables of tensors, and the flags that they depend on."""
        templates, biases, on, only = [*self.names], {}, {}, {}
        for flag, value in self._flags().items():
            toggled, fixed = self._toggled(flag, value)
            if fixed:
                only[flag] = (value,)
            elif toggled:
                flags = {} if value else {flag: True}
                many = self._built(flags) if flags else self.many
                biases[flag] = {name: self._axes(name, many, flags) for name in toggled}
                templates = [name for name in templates if name not in toggled]
                on[flag] = True
        self.made.config |= on
        usual = {flag: True for flag in biases if default(self.made.kind).get(flag) is True}
        self.tensors = {name: self._axes(name, self.many, {}) for name in templates}
        return {
            "layer": self.seen.layer("{i}"),
            "tensors": self.tensors,
            "biases": biases,
            "flags": usual,
            "only": only,
            "inputs": self.inputs,
            "beside": self.beside,
            "axes": self.own.axes,
        }

    def initial(self) -> dict[str, float]:
        """Return what vectors begin with in a new model that are no norm's and no biases."""
        fresh, norms = random_model(self.made.config, fresh=True), self.seen.norms()
        weights = {f"{call.name}.weight" for call in norms}
        found = {}
        for name, tensor in fresh.state_dict().items():
            own = None if name in weights else self.seen.own_name(name)
            if own and tensor.dim() == 1 and not name.endswith((".bias", "norm.weight")):
                found[own] = round(float(tensor.float().mean()), 6)
        return found

    def _flags(self) -> dict[str, bool]:
        """Return the flags that the class of a config has of its own."""
        from transformers import CONFIG_MAPPING, PretrainedConfig

        own = signature(CONFIG_MAPPING[self.made.kind]).parameters
        every, config = {*signature(PretrainedConfig).parameters, *IDLE}, self.made.config
        flags = [key for key in own if key not in every and isinstance(config.get(key), bool)]
        return {key: config[key] for key in flags}

    def _toggled(self, flag: str, value: bool) -> tuple[list[str], bool]:
        """Return the biases that exist when a flag is on, and whether it must stay as it is.

        It must where something else depends on it.
        """
        other = {**self.made.config, flag: not value}
        try:
            shapes = self.made.shapes(other)
            names = self._named(shapes)
        except InputError:
            return [], True
        here = self.names
        more, fewer = (names, here) if not value else (here, names)
        found = [name for name in more if name not in fewer]
        if any(name not in more for name in fewer):
            return [], True
        if found:
            return found, not all(name.endswith(".bias") for name in found)
        try:
            return [], not self._computes_the_same(other)
        except configs.Endless:
            raise
        except InputError:  # it cannot be run
            return [], True

    def _computes_the_same(self, config: Mapping[str, Any]) -> bool:
        import torch

        model = random_model(config)
        with torch.no_grad(), configs.bounded("transformers' model cannot be run"):
            return bool(model(self.seen.ids, use_cache=False).logits.equal(self.seen.logits))


def _apart(groups: list[tuple[str, ...]]) -> list[tuple[tuple[str, ...], ...]]:
    """Return the linears of a layer's mixers, by mixer: two have modules of their own."""
    if len(groups) < 3:
        return [tuple(groups)] if groups else []
    found: dict[str, list[tuple[str, ...]]] = {}
    for group in groups:
        found.setdefault(group[0].rpartition(".")[0], []).append(group)
    return [tuple(mixer) for mixer in found.values()]
