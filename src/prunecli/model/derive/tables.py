"""The tensors of a model and their axes, by how shapes change with sizes."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.derive.defaults import default
from prunecli.model.derive.draft import LAYERS, OTHERS, SIZES, Draft
from prunecli.model.derive.forward import Seen, equal, random_model
from prunecli.model.families._base import Axes

if TYPE_CHECKING:
    Shapes = Mapping[str, tuple[int, ...]]

IDLE = ("tie_word_embeddings", "use_cache")  # flags that say nothing of the layers


LENGTHS: Mapping[str, Callable[[Mapping[str, int]], int]] = {
    "vocab": lambda s: s["vocab"],
    "hidden": lambda s: s["hidden"],
    "ffn": lambda s: s["ffn"],
    "ffn+ffn": lambda s: 2 * s["ffn"],
    "heads": lambda s: s["heads"] * s["head_dim"],
    "kv_heads": lambda s: s["kv_heads"] * s["head_dim"],
    "qkv_by_head": lambda s: 3 * s["heads"] * s["head_dim"],
    "heads+kv_heads+kv_heads": lambda s: (s["heads"] + 2 * s["kv_heads"]) * s["head_dim"],
    "head_dim": lambda s: s["head_dim"],
    "each_head": lambda s: s["heads"],
    "one": lambda s: 1,
}


class Tables:
    """The tensors of a model and their axes."""

    def __init__(self, made: Draft, seen: Seen) -> None:
        self.made, self.seen = made, seen
        axes = [axis for axis in OTHERS if axis in made.keys]
        self.sizes = [self._whole({}), *(self._whole({axis: OTHERS[axis]}) for axis in axes)]
        self.changes = [{}, *(made.changed(axis, OTHERS[axis]) for axis in axes)]
        self.offset = made.fields.get("position_offset", 0)
        self.many = self._built({})
        for name in self._templates(self.many[0]):
            dimensions = len(self.many[0][name.replace("{i}", "0")])
            if dimensions > 2:
                raise made.refused(f"'{name}' has {dimensions} dimensions")
        self._sort_linears()

    def _whole(self, changed: dict[str, int]) -> dict[str, int]:
        """Return all sizes, with those that the class has no key for as it makes them."""
        sizes = {**SIZES, **changed}
        if "kv_heads" not in self.made.keys:
            sizes["kv_heads"] = sizes["heads"]
        if "head_dim" not in self.made.keys:
            sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        return sizes

    def _built(self, flags: Mapping[str, Any]) -> "list[Shapes]":
        """Return the shapes of all tensors, one size changed at a time."""
        return [configs.shapes({**self.made.config, **flags, **change}) for change in self.changes]

    def _templates(self, shapes: "Shapes") -> list[str]:
        """Return the names of tensors, with `{i}` for the layer; all layers must be alike."""
        inside = f"{self.seen.list}."
        layers: list[set[str]] = [set() for _ in range(LAYERS)]
        for name in shapes:
            if name.startswith(inside):
                number, _, rest = name.removeprefix(inside).partition(".")
                layers[int(number)].add(rest)
        for i, names in enumerate(layers):
            if odd := sorted(names ^ layers[0]):
                raise self.made.refused(f"layers 0 and {i} are unlike each other: '{odd[0]}'")
        root = [name for name in shapes if not name.startswith(inside)]
        first, last = self.made.fields["embedding"], self.made.fields["head"]
        root.sort(key=lambda name: (not name.startswith(f"{first}."), name.startswith(f"{last}.")))
        within = [name for name in shapes if name.startswith(f"{inside}0.")]
        templates = [name.replace(f"{inside}0.", f"{inside}{{i}}.", 1) for name in within]
        return [root[0], *templates, *root[1:]]

    def _candidates(self, template: str, many: "Sequence[Shapes]") -> list[list[str]]:
        """Return for each dimension of a tensor the axes that it changes as."""
        name = template.replace("{i}", "0")
        if any(name not in shapes for shapes in many):
            raise self.made.refused(f"whether it has '{template}' depends on its sizes")
        found = []
        for lengths in zip(*(shapes[name] for shapes in many), strict=True):
            fits = [axis for axis, rule in LENGTHS.items() if (*map(rule, self.sizes),) == lengths]
            if lengths == tuple(sizes["positions"] + self.offset for sizes in self.sizes):
                fits.append("positions")
            found.append(fits)
        return found

    def _sort_linears(self) -> None:
        """Find which linears are those of attention and of the FFN: the inputs of a record."""
        up, down, rest = [], [], []
        for group in self.seen.groups:
            out, read = self._candidates(f"{self.seen.list}.{{i}}.{group[0]}.weight", self.many)
            if "ffn" in read:
                down.append(tuple(group))
            elif {"ffn", "ffn+ffn"} & {*out}:
                up.append(tuple(group))
            else:
                rest.append(tuple(group))
        if len(rest) != 2 or len(up) != 1 or len(down) != 1 or len(down[0]) != 1:
            told = "; ".join(" ".join(group) for group in self.seen.groups) or "none"
            raise self.made.refused(
                "the linears of a layer, by what they read, are not those of attention and of one "
                f"FFN: {told}"
            )
        self.inputs = (rest[0], rest[1], up[0], down[0])
        self.written = (rest[1][0], down[0][0])
        _, read = self._candidates(f"{self.seen.list}.{{i}}.{rest[1][0]}.weight", self.many)
        self.narrows = "heads" in read  # whether it reads the channels of the heads

    def _axes(self, template: str, many: "Sequence[Shapes]") -> Axes:
        """Return the axes of a tensor."""
        found = self._candidates(template, many)
        module = template.removeprefix(f"{self.seen.list}.{{i}}.").rpartition(".")[0]
        chosen = tuple(self._one(module, d, fits) for d, fits in enumerate(found))
        for d, axis in enumerate(chosen):
            if not axis:
                size = many[0][template.replace("{i}", "0")][d]
                raise self.made.refused(
                    f"dimension {d} of '{template}' is no axis of a family ({size} in a tiny model)"
                )
        return chosen

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
        calls, layer = self.seen.calls, self.seen.layer
        taken = calls[layer + module].taken if layer + module in calls else None
        return any(equal(calls[layer + name].given, taken) for name in self.inputs[0])

    def fields(self) -> dict[str, Any]:
        """Return the tables of tensors, and the flags that they depend on."""
        templates, biases, on, only = self._templates(self.many[0]), {}, {}, {}
        for flag, value in self._flags().items():
            toggled, fixed = self._toggled(flag, value)
            if fixed:
                only[flag] = (value,)
            elif toggled:
                many = self.many if value else self._built({flag: True})
                biases[flag] = {name: self._axes(name, many) for name in toggled}
                templates = [name for name in templates if name not in toggled]
                on[flag] = True
        self.made.config |= on
        usual = {flag: True for flag in biases if default(self.made.kind).get(flag) is True}
        return {
            "layer": f"{self.seen.list}.{{i}}.",
            "tensors": {name: self._axes(name, self.many) for name in templates},
            "biases": biases,
            "flags": usual,
            "only": only,
            "inputs": self.inputs,
        }

    def initial(self) -> dict[str, float]:
        """Return what vectors begin with in a new model that are no norm's and no biases."""
        fresh, norms = random_model(self.made.config, fresh=True), self.seen.norms()
        weights = {f"{call.name}.weight" for call in norms}
        found = {}
        for name, tensor in fresh.state_dict().items():
            own = name.startswith(self.seen.layer) and name not in weights
            if own and tensor.dim() == 1 and not name.endswith((".bias", "norm.weight")):
                found[name.removeprefix(self.seen.layer)] = round(float(tensor.float().mean()), 6)
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
            shapes = configs.shapes(other)
            names = self._templates(shapes)
        except InputError:
            return [], True
        here = self._templates(self.many[0])
        more, fewer = (names, here) if not value else (here, names)
        found = [name for name in more if name not in fewer]
        if any(name not in more for name in fewer):
            return [], True
        if found:
            return found, not all(name.endswith(".bias") for name in found)
        return [], not self._computes_the_same(other)

    def _computes_the_same(self, config: Mapping[str, Any]) -> bool:
        import torch

        model = random_model(config)
        with torch.no_grad(), configs.bounded("transformers' model cannot be run"):
            return bool(model(self.seen.ids, use_cache=False).logits.equal(self.seen.logits))
