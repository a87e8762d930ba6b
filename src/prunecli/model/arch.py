"""`Arch`: the shape of one model, what it counts, and the shapes that are left of it. No torch.

Counts follow the paper's Table 1, FLOPs its Table 9: two per multiply-add, attention over the full
T x T square, output head included, embedding look-up not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

from prunecli.errors import InputError
from prunecli.model.families import registry
from prunecli.model.families._base import Axes, Family
from prunecli.model.layout import LAYER_INPUT, Layout

GROUPS = ("embedding", "attention", "ffn", "norms", "biases", "head")
# of linears of layers without heads, of kernels that slide over tokens, and of what layers get
# beside the residual stream
MIXERS, CONVOLUTIONS, LAYER_INPUTS = "mixers", "convolutions", "layer_inputs"
RARE_GROUPS = (MIXERS, CONVOLUTIONS, LAYER_INPUTS)
BLOCK_GROUPS = ("attention", "ffn", MIXERS)
EXPLICIT = ("heads", "kv_heads", "head_dim", "ffn")
HEADS = {"heads", "kv_heads", "qkv_by_head", "gated_heads"}
UNITS = {"hidden": "hidden channels", "ffn": "FFN channels"}
FLOPS_TOKENS = 2048


class Arch(Layout):
    """The shape of one model: what it consists of, what that counts, and what a pruned one is."""

    @property
    def ffn_matrices(self) -> int:
        """How many matrices have a row or a column of an FFN channel: 3, or 2 without a gate.

        Where there are experts, those of one of them.
        """
        return sum("+".join(axes).split("+").count("ffn") for axes in self._matrices())

    @property
    def head_matrices(self) -> int:
        """How many matrices have rows or columns of a query head: 2, or 3 where heads have a gate.

        Those of a KV head are 2.
        """
        gated = any("gated_heads" in "+".join(axes).split("+") for axes in self._matrices())
        return 3 if gated else 2

    def heads_params(
        self, hidden: float, heads: float, kv_heads: float, i: int | None = None
    ) -> float:
        """Return the linear parameters of so many heads beside so many hidden channels.

        They are those of layer `i`, or of the mean layer that has heads.
        """
        if not (self.family.by_head or self.family.sizes):
            return hidden * self.head_dim * (self.head_matrices * heads + 2 * kv_heads)
        kept = {"heads": heads / self.heads, "kv_heads": kv_heads / self.kv_heads}
        having = self.with_units("heads")
        counts = Counter(map(self.kinds.__getitem__, having))
        total = 0.0
        for n in (n for n in self.sorts if n in having) if i is None else (i,):
            of_layer = 0.0
            for name in self.block_linears():
                axes = self.inside(n).get(name, ())
                for axis, other in zip(axes, reversed(axes), strict=True):
                    unit = self.unit_rows(axis, n)
                    if unit is not None:
                        wide = hidden if other == "hidden" else self.axis_size(other, n)
                        of_layer += kept[unit[0]] * self.axis_size(axis, n) * wide
            total += of_layer if i is not None else of_layer * counts[self.kinds[n]] / len(having)
        return total

    def _matrices(self) -> list[Axes]:
        tensors = self.family.templates(self.config)
        return [tensors[name] for name in self.block_linears() if name in tensors]

    def params(self, active: bool = False) -> dict[str, int]:
        """Return parameter counts by group; tied weights count once.

        With `active`, of experts only as many as a token is sent to.
        """
        experts = self.experts_per_token if active else self.experts
        router = ("router",) if experts else ()
        groups = dict.fromkeys((*GROUPS, *router, *RARE_GROUPS), 0)
        tables: list[tuple[int | None, Mapping[str, Axes]]] = [(None, self._root())]
        for i, table in [*tables, *self._each_kind()]:
            count = 1 if i is None else self.kinds.count(self.kinds[i])
            for name, axes in table.items():
                times = count * (experts if "{e}" in name else 1)
                groups[self._group(name, axes)] += times * prod(self.shape(axes, i))
        return {name: n for name, n in groups.items() if n or name not in RARE_GROUPS}

    def _group(self, name: str, axes: Axes) -> str:
        """Return the group that a tensor is counted in."""
        if "{i}" not in name and len(axes) == 2:
            if axes[0] in self.family.by_layer:
                return LAYER_INPUTS
            return "head" if name.startswith(self.family.head) else "embedding"
        if "experts" in axes or axes == ("one", "hidden"):
            return "router"
        if len(axes) < 2:
            return "biases" if name.endswith(".bias") else "norms"
        if len(axes) > 2:
            return CONVOLUTIONS
        parts = {*"+".join(axes).split("+")}
        if LAYER_INPUT in parts:
            return LAYER_INPUTS
        if any(part.endswith("ffn") for part in parts):
            return "ffn"
        squeezed = any(part.endswith("_rank") for part in parts)
        return "attention" if squeezed or parts & self._by_head else MIXERS

    @property
    def _by_head(self) -> set[str]:
        """The axes of linears with rows or columns of every head."""
        return {*HEADS, *self.family.by_head}

    @property
    def total_params(self) -> int:
        """All parameters; tied weights count once."""
        return sum(self.params().values())

    @property
    def active_params(self) -> int:
        """The parameters that a token's logits are computed with; all of them without experts."""
        return sum(self.params(active=True).values())

    def active_counts(self) -> dict[str, int]:
        """Return what results say of the active parameters: nothing where all are."""
        return {"active_params": self.active_params} if self.experts else {}

    @property
    def block_params(self) -> int:
        """Parameters of the block linears of all layers."""
        return sum(self.params().get(group, 0) for group in BLOCK_GROUPS)

    def layer_params(self, i: int) -> int:
        """Return those of layer `i`."""
        linears = {*self.block_linears()}
        return sum(
            len(self._experts_of(name)) * prod(self.shape(axes, i))
            for name, axes in self.inside(i).items()
            if name in linears
        )

    def other_params(self, i: int) -> int:
        """Return those of layer `i` that heads, FFN channels and experts have no share in."""
        linears = {*self.block_linears()}
        return sum(
            prod(self.shape(axes, i))
            for name, axes in self.inside(i).items()
            if name in linears and not {*"+".join(axes).split("+")} & {*self._by_head, "ffn"}
        )

    @property
    def other_block_params(self) -> int:
        """Those of all layers."""
        return sum(self.kinds.count(self.kinds[i]) * self.other_params(i) for i in self.sorts)

    def heaviest(self, count: int) -> list[int]:
        """Return the layers with the most such parameters, so many of them that can be a model."""
        return self._by_params(count, -1)

    def lightest(self, count: int) -> list[int]:
        """Return those with the fewest."""
        return self._by_params(count, 1)

    def _by_params(self, count: int, sign: int) -> list[int]:
        sizes = {self.kinds[i]: sign * self.layer_params(i) for i in self.sorts}
        return self.first_of(sorted(range(self.layers), key=lambda i: sizes[self.kinds[i]]), count)

    def first_of(self, order: Sequence[int], count: int) -> list[int]:
        """Return the first `count` layers in an order of all, with one of each kind that must stay.

        They ascend.
        """
        needed = self.must_stay(order)
        return sorted([*needed, *(i for i in order if i not in needed)][:count])

    def must_stay(self, order: Sequence[int]) -> list[int]:
        """Return the first layer, in an order of all, of each kind that must stay."""
        found = (next(i for i in order if kind in self.kinds[i]) for kind in self._needed())
        return [*dict.fromkeys(found)]

    def _needed(self) -> list[str]:
        """Return the kinds of layers that this model has, and must not lose all of."""
        return [kind for kind in self.family.needed if kind in chain(*self.kinds)]

    def flops(self, seq_len: int = 2048, density: float = 1.0) -> int:
        """Return FLOPs of one forward over `seq_len` tokens, each through its own experts only.

        `density` is the share of block-linear weights that are not zero. Vectors (norms, biases)
        count as if multiplied, as Table 9 does.
        """
        params = self.params(active=True)
        linears = sum(params.get(group, 0) for group in BLOCK_GROUPS)
        outside = linears + params["embedding"] + params["head"]
        dense = sum(params.values()) - outside + self.vocab * self.hidden
        weights = dense + round(density * linears) + self._recurrences()
        sizes = (self.size("head_dim", i) for i in self.with_units("heads"))
        numbers = sum(size + self._ruled("scored", size) for size in sizes)
        return 2 * weights * seq_len + 2 * seq_len**2 * self.heads * numbers

    def _recurrences(self) -> int:
        """Return the multiply-adds of one token that update and read the states of all layers."""
        rules = self.family.recurrences
        return sum(rules[kind](self.get) or 0 for kind in chain(*self.kinds) if kind in rules)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Return the bytes that keys and values of one token take in the cache."""
        return bytes_per_value * sum(self.size("cached", i) for i in self.with_units("heads"))

    def child(
        self,
        *,
        hidden: int | None = None,
        ffn: int | None = None,
        kv_heads: int | None = None,
        heads: int | None = None,
        experts: int | None = None,
        layers: list[int] | None = None,
        biased: bool = False,
    ) -> "Arch":
        """Return the shape of a pruned model, in a container that stock transformers loads.

        `layers` are the indices kept; `biased` asks for biases on the projections out of the heads
        and out of the FFN. The parent's own family is kept where its config class allows the
        shape, else the first of its `containers` that computes the same.
        Raises InputError when none does, or the family cannot lose an axis exactly.
        """
        self.check_fixed(hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads)
        # absent, these would mean something else in a pruned model or in another container
        key = self.family.key
        config = {**self.config, **{key(axis): getattr(self, axis) for axis in EXPLICIT}}
        config |= self.family.as_child
        if kv_heads is not None:
            group = (heads or self.group * kv_heads) // kv_heads
            config[key("kv_heads")] = kv_heads
            config[key("heads")] = group * kv_heads
        for axis, size in (("hidden", hidden), ("ffn", ffn), ("experts", experts)):
            if size is not None:
                config[key(axis)] = size
        if layers is not None:
            self._check_kept(layers)
            config |= self._relayered(layers)
        return Arch(self._contained(config, biased))

    def lost(self, layers: Sequence[int]) -> list[str]:
        """Return the kinds that a model must have and these layers have none of."""
        stay = {*chain(*(self.kinds[i] for i in layers))}
        return [kind for kind in self._needed() if kind not in stay]

    def _check_kept(self, layers: list[int]) -> None:
        """Raise InputError where no layer of a kind stays that a model must have."""
        for kind in self.lost(layers):
            raise InputError(
                f"'{self.family.name}' cannot lose all of its {kind} layers: "
                f"{self.family.needed[kind]}",
                "keep one of them",
            )

    def _relayered(self, kept: list[int]) -> dict[str, Any]:
        """Return what a config.json with these layers says of them."""
        changed: dict[str, Any] = {self.family.key("layers"): len(kept)}
        for name, entry in self.family.layer_lists.items():
            if isinstance(self.config.get(name), list):
                changed[name] = [self.config[name][i] for i in kept]
            elif entry is not None:
                changed[name] = [entry(self.config, i) for i in kept]
        full = self.config.get("max_window_layers")
        if isinstance(full, int):
            changed["max_window_layers"] = sum(i < full for i in kept)
        if self.family.relayered is not None:
            changed |= self.family.relayered(self.config, kept)
        return changed

    def check_fixed(self, **sizes: int | None) -> None:
        """Raise InputError for sizes below this model's on axes that its family cannot lose."""
        for axis, size in sizes.items():
            why = self.family.fixed.get("heads" if axis == "kv_heads" else axis)
            if why is not None and size is not None and size < getattr(self, axis):
                what = "heads" if axis == "kv_heads" else UNITS.get(axis, axis)
                raise InputError(
                    f"'{self.family.name}' cannot lose {what}: {why}", "keep all of them"
                )

    def _active(self, key: str) -> bool:
        """Return whether a config key is on; a window that holds every position is not."""
        value = self.get(key)
        return bool(value) and (isinstance(value, bool) or value < self.max_positions)

    def _contained(self, config: dict[str, Any], biased: bool) -> dict[str, Any]:
        has = self.family.templates(self.config)
        wanted = {name for name in has if name.endswith(".bias")}
        if biased:
            wanted |= {f"{self.family.layer}{module}.bias" for module in self.compensated}
        flags = _bias_flags(self.family, wanted)
        if flags is not None and _takes(self.family, config):
            return {**config, **flags} if biased else config
        if not any(self._active(key) for key in self.family.not_convertible_if):
            filled = {**self.family.defaults, **config}
            if "rope_theta" not in filled and "rope_parameters" not in filled:
                filled["rope_theta"] = 10000.0
            for name in self.family.containers:
                family = registry.get(name)
                flags = _bias_flags(family, wanted)
                if flags is not None and _takes(family, config):
                    return {
                        **filled,
                        **family.as_container,
                        **flags,
                        "model_type": family.model_types[0],
                        "architectures": [f"{family.classes}ForCausalLM"],
                    }
        what = "biases on o_proj and down_proj" if biased else "this shape"
        remedy = "use --bias drop" if biased else "choose a hidden size that the heads divide"
        raise InputError(f"no stock container holds a {self.family.name} with {what}", remedy)


def _takes(family: Family, config: Mapping[str, Any]) -> bool:
    hidden, heads = config[family.key("hidden")], config[family.key("heads")]
    return not family.hidden_divides or hidden % heads == 0


def _bias_flags(family: Family, wanted: set[str]) -> dict[str, bool] | None:
    """Return the flags that make `family` hold all `wanted` biases, or None if it cannot."""
    always = {name for name in family.tensors if name.endswith(".bias")}
    flags = {flag: bool(wanted & set(table)) for flag, table in family.biases.items()}
    held = always.union(*(family.biases[flag] for flag, on in flags.items() if on))
    return flags if wanted <= held else None
