"""`Arch`: a config.json read through its family: sizes, tensors, parameters, FLOPs. No torch.

Counts follow the paper's Table 1, FLOPs its Table 9: two per multiply-add, attention over the full
T x T square, output head included, embedding look-up not.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from prunecli.errors import InputError
from prunecli.files.tensorfile import Inside
from prunecli.model import configs
from prunecli.model.families import registry
from prunecli.model.families._base import (
    CONFIG_KEYS,
    EXPERT_KEYS,
    Axes,
    Family,
    LayerInputs,
    SharedKeys,
)

GROUPS = ("embedding", "attention", "ffn", "norms", "biases", "head")
# of linears of layers without heads, and of kernels that slide over tokens
KINDS_GROUPS = ("mixers", "convolutions")
# of what layers get beside the residual stream: the axis of one layer's part, and their parameters
LAYER_INPUT, LAYER_INPUTS = "layer_input", "layer_inputs"
# of ids between layers: digits that every compute type holds exactly, of any vocabulary
BASE, DIGITS = 256, 4
BLOCK_GROUPS = ("attention", "ffn", "mixers")
EXPLICIT = ("heads", "kv_heads", "head_dim", "ffn")
HEADS = {"heads", "kv_heads", "qkv_by_head", "gated_heads"}
ATTENTION = {"full_attention", "sliding_attention"}
POINTS = ("q", "o", "gate", "down")
UNITS = {"hidden": "hidden channels", "ffn": "FFN channels"}
# the axes in a layer's table that show that it has some of these units
SHOWN = {"kv_heads": {"heads"}, "heads": {"heads"}}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: its axes, its shape, its layer, its template's name, its expert."""

    axes: Axes
    shape: tuple[int, ...]
    layer: int | None
    template: str
    expert: int | None = None


class Place(NamedTuple):
    """A point of a layer: its full name, how many channels it has, and of which expert it is."""

    name: str
    width: int
    expert: int | None = None


class Arch:
    """The shape of one model. `config` is its config.json.

    Sizes are those of a layer, and all layers have them but for kinds with sizes of their own.

    `ffn` is the size of one FFN; of these a layer has as many as `experts`, where that is not 0.

    Raises InputError when config.json is not that of a known family, or its sizes cannot be.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.family: Family = registry.of_config(config)
        self.config = self.family.renamed(config)
        configs.check_numbers(self.config)
        self.layers = self._size("layers")
        self.hidden = self._size("hidden")
        self.ffn = self._size("ffn")
        self.heads = self._size("heads")
        self.kv_heads = self._size("kv_heads", self.heads)
        self.vocab = self._size("vocab")
        self.head_dim = self._size("head_dim", self.hidden // self.heads)
        self._check_heads(self.kv_heads)
        mixture = self.family.experts is not None
        self.experts, self.experts_per_token = (
            self._size(axis) if mixture else 0 for axis in EXPERT_KEYS
        )
        if self.experts_per_token > self.experts:
            raise InputError(
                f"config.json has {self.experts} experts, and sends every token to "
                f"{self.experts_per_token}"
            )
        self._check_groups()
        self._check_lists()
        self.kinds = self._kinds()
        self._inside: dict[tuple[str, ...], dict[str, Axes]] = {}
        self._having: dict[str, frozenset[int]] = {}
        for i in self.sorts if self.family.sizes else ():
            self._check_heads(self.size("kv_heads", i))

    @classmethod
    def read(cls, folder: str | Path) -> "Arch":
        """Read FOLDER/config.json, to be counted; raise InputError if it is missing or unknown."""
        return cls(configs.read(folder, counted=True).values)

    def get(self, key: str) -> Any:
        """Return a value of config.json, or what its absence means in this family."""
        return self.config[key] if key in self.config else self.family.defaults.get(key)

    @property
    def expert_groups(self) -> tuple[int, int]:
        """In how many equal groups experts are, and of how many a token takes some."""
        experts = self.family.experts
        if experts is None or experts.groups is None:
            return 1, 1
        groups, open_groups = (int(self.get(key) or 1) for key in experts.groups)
        return groups, open_groups

    def too_few_experts(self, count: int) -> tuple[str, str] | None:
        """Return why a layer cannot be left so many experts, and what to do; None if it can.

        Of a group, the two best experts are its score.
        """
        each, (groups, open_groups) = self.experts_per_token, self.expert_groups
        if groups == 1:
            enough = count >= each
            return None if enough else (f"every token is sent to {each}", f"keep {each} at least")
        least = groups * max(2, -(-each // min(open_groups, groups)))
        if count >= least and count % groups == 0:
            return None
        why = f"every token is sent to {each} out of {open_groups} of {groups} equal groups"
        return why, f"keep a multiple of {groups}, {least} at least"

    def _check_heads(self, kv_heads: int) -> None:
        if self.heads % kv_heads:
            raise InputError(
                f"config.json has {self.heads} heads, not a multiple of {kv_heads} KV heads"
            )

    def _check_groups(self) -> None:
        groups, _ = self.expert_groups
        if self.experts % groups:
            raise InputError(
                f"config.json has {self.experts} experts, not a multiple of {groups} groups"
            )

    def _check_lists(self) -> None:
        for key in self.family.layer_lists:
            entries = self.config.get(key)
            if not isinstance(entries, list):
                continue
            if len(entries) != self.layers:
                raise InputError(
                    f"config.json: {key} has {len(entries)} entries, expected one for each of "
                    f"{self.layers} layers"
                )
            if key == "layer_types" and not self.family.kinds:
                self._check_kinds(key, entries, ATTENTION)

    def _check_kinds(self, key: str, entries: Iterable[Any], known: Collection[str]) -> None:
        if odd := set(map(str, entries)) - {*known}:
            raise InputError(
                f"config.json: {key} has '{min(odd)}', expected {' or '.join(sorted(known))}"
            )

    def _kinds(self) -> tuple[tuple[str, ...], ...]:
        """Return of which of the family's kinds each layer is."""
        rule = self.family.kinds_of
        if rule is None:
            return ((),) * self.layers
        found = tuple(rule(self.config, i) for i in range(self.layers))
        self._check_kinds("layer_types", chain(*found), self.family.kinds)
        return found

    def _size(self, axis: str, otherwise: int | None = None) -> int:
        key = self.family.key(axis)
        rule = self.family.axes.get(axis)
        value = self.get(key) if rule is None else rule(self.get)
        if value is None:
            value = otherwise
        if value is None:
            raise InputError(f"config.json lacks {key}")
        return int(value)

    def size(self, axis: str, i: int) -> int:
        """Return a size of layer `i`: that of one of its kinds, or else that of all layers."""
        for kind in self.kinds[i] if self.family.sizes else ():
            rule = self.family.sizes.get(kind, {}).get(axis)
            size = None if rule is None else rule(self.get)
            if size is not None:
                return size
        if axis == "cached":  # numbers of a token: its keys and values
            return self._ruled(axis, 2 * self.size("kv_heads", i) * self.size("head_dim", i))
        return int(getattr(self, axis))

    def times(self, axis: str, i: int) -> int:
        """Return how many times as much layer `i` has of an axis as config.json says."""
        return self.size(axis, i) // int(getattr(self, axis))

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    def group_of(self, i: int) -> int:
        """Return the query heads per KV head of layer `i`."""
        return self.heads // self.size("kv_heads", i)

    @cached_property
    def layer_inputs(self) -> LayerInputs | None:
        """What the layers of a model with this config get beside the residual stream."""
        found = self.family.layer_inputs
        flagged = found is not None and f"{found.embedding}.weight" in self._root()
        return found if flagged else None

    @cached_property
    def shared_keys(self) -> SharedKeys | None:
        """Which layers take the keys and values of others, None where none do."""
        found = self.family.shared_keys
        return None if found is None or found.taker not in chain(*self.kinds) else found

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.get("tie_word_embeddings"))

    def inside(self, i: int) -> Mapping[str, Axes]:
        """Return the templates of the tensors of layer `i`, with their axes."""
        kinds, family = self.kinds[i], self.family
        if kinds not in self._inside:
            own = {module for kind in kinds for module in family.kinds[kind]}
            others = {*chain(*family.kinds.values())} - own
            absent = tuple(f"{family.layer}{module}." for module in others)
            self._inside[kinds] = {
                name: axes
                for name, axes in family.templates(self.config).items()
                if name.startswith(family.layer) and not f"{name}.".startswith(absent)
            }
        return self._inside[kinds]

    def with_units(self, axis: str) -> list[int]:
        """Return the layers that have units of an axis: heads, FFN channels or experts."""
        return [i for i in range(self.layers) if self.has(axis, i)]

    def ranked(self, axis: str) -> list[int]:
        """Return the layers whose units of an axis can be compared, and some of them removed."""
        uneven = axis in ("heads", "kv_heads") and not self.even_heads
        return [] if uneven else self.with_units(axis)

    def has(self, axis: str, i: int) -> bool:
        """Return whether layer `i` has units of an axis."""
        if axis not in self._having:
            shown = SHOWN.get(axis, {axis})
            kinds = {
                self.kinds[first]
                for first, table in self._each_kind()
                if any(shown & {*"+".join(axes).split("+")} for axes in table.values())
            }
            having = (n for n, own in enumerate(self.kinds) if own in kinds)
            self._having[axis] = frozenset(having)
        return i in self._having[axis]

    def _each_kind(self) -> Iterator[tuple[int, Mapping[str, Axes]]]:
        """Yield the first layer of each kind, and the table of its tensors."""
        firsts = {kinds: i for i, kinds in reversed([*enumerate(self.kinds)])}
        for i in sorted(firsts.values()):
            yield i, self.inside(i)

    @property
    def sorts(self) -> list[int]:
        """The first layer of each kind."""
        return [i for i, _ in self._each_kind()]

    def norms(self, i: int) -> list[str]:
        """Return the modules of layer `i` that norm the residual stream, or what is added to it."""
        return [
            name.removeprefix(self.family.layer).removesuffix(".weight")
            for name, axes in self.inside(i).items()
            if axes == ("hidden",) and not name.endswith(".bias")
        ]

    @cached_property
    def carried(self) -> dict[str, slice]:
        """Where states between layers have, behind hidden channels, what later layers read.

        That is a token's `id` in digits, and its keys and values by the type of layer.
        """
        sizes = {} if self.layer_inputs is None else {"id": DIGITS}
        shared = self.shared_keys
        for kind, giver in shared.giver.items() if shared is not None else ():
            for i in (i for i in self.sorts if giver in self.kinds[i]):
                sizes[kind] = 2 * self.size("kv_heads", i) * self.size("head_dim", i)
        ends = [*accumulate(sizes.values(), initial=self.hidden)]
        return dict(zip(sizes, map(slice, ends, ends[1:]), strict=False))

    @property
    def states_width(self) -> int:
        """How many numbers of a token there are between layers: hidden channels and `carried`."""
        return max((place.stop for place in self.carried.values()), default=self.hidden)

    def post_norms(self, i: int) -> tuple[str, ...]:
        """Return the post-sublayer norms of layer `i`."""
        norms, before = self.norms(i), self.family.norms_before
        others = {name for kind in self.kinds[i] for name in before.get(kind, ())}
        return tuple(n for n in self.family.post_norms if n in norms and n not in others)

    def joined(self) -> dict[str, list[str]]:
        """Return the tensors that files can have in parts, and the names of these, in order."""
        found = {}
        for i in range(self.layers):
            table, prefix = self.inside(i), self.prefix(i)
            for whole, parts in self.family.joined.items():
                if self.family.layer + whole in table:
                    found[prefix + whole] = [prefix + part for part in parts]
        return found

    @property
    def head_bias(self) -> bool:
        """Whether the output head has a bias."""
        return f"{self.family.head}.bias" in self.family.tensors

    def outputs(self, i: int) -> tuple[str, ...]:
        """Return the last projections of layer `i`: out of heads, FFN channels and the like."""
        table, layer = self.inside(i), self.family.layer
        others = (name for name in self.family.writers if f"{layer}{name}.weight" in table)
        return (*self.modules("o", i), *self.modules("down", i), *others)

    def is_output(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the weight or the bias of such a projection."""
        if tensor.layer is None:
            return False
        module = tensor.template.removeprefix(self.family.layer).rpartition(".")[0]
        return module in self._outputs

    @cached_property
    def _outputs(self) -> set[str]:
        inputs, beside = self.family.inputs, self.family.beside
        return {
            *self.family.writers,
            *(
                module
                for point in ("o", "down")
                for modules in (inputs[POINTS.index(point)], *beside.get(point, ()))
                for module in modules
            ),
        }

    @property
    def compensated(self) -> tuple[str, ...]:
        """The projections out of the heads and out of the FFN channels, where layers have them."""
        return (self.module("o"), self.module("down"))

    def compensated_in(self, i: int) -> tuple[str, ...]:
        """Return those that layer `i` has, which experts have not one of."""
        table, layer = self.inside(i), self.family.layer
        return tuple(
            module
            for module in self.compensated
            if f"{layer}{module}.weight" in table and "{e}" not in module
        )

    def writers(self, i: int) -> tuple[str, ...]:
        """Return the modules of layer `i` whose outputs are added to the residual stream."""
        return self.post_norms(i) or self.outputs(i)

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

    @cached_property
    def even_heads(self) -> bool:
        """Whether all layers with heads have as many KV heads of one size, computed by themselves.

        Else no head of one layer is like that of another, and none is removed.
        """
        having = (i for i in self.sorts if self.has("heads", i))
        sizes = {(self.size("kv_heads", i), self.size("head_dim", i)) for i in having}
        return len(sizes) < 2 and self.shared_keys is None

    @property
    def ffns(self) -> int:
        """How many FFNs a layer has: one, or its experts."""
        return max(1, self.experts)

    def _matrices(self) -> list[Axes]:
        tensors = self.family.templates(self.config)
        return [tensors[name] for name in self.block_linears() if name in tensors]

    @property
    def norm_spans_heads(self) -> bool:
        """Whether a norm runs over all heads together, so that removing one changes the others."""
        return any(
            axes in (("heads",), ("kv_heads",)) and not name.endswith(".bias")
            for name, axes in self.family.tensors.items()
        )

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for, in tokens."""
        return int(self.get("max_position_embeddings"))

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that `--layers --hidden --heads --ffn` speak of, and what goes with them."""
        axes = (*CONFIG_KEYS, *(EXPERT_KEYS if self.experts else ()))
        return {axis: getattr(self, axis) for axis in axes}

    def axis_size(self, axis: str, i: int | None = None) -> int:
        """Return how long a dimension of this axis is (fused axes: the sum of the segments).

        It is that of layer `i`, whose kind can have sizes of its own.
        """
        return sum(place.stop - place.start for place in self.axis_slices(axis, i))

    def axis_slices(self, axis: str, i: int | None = None) -> list[slice]:
        """Return where the parts of a fused axis lie, of any other axis the whole."""
        found, start = [], 0
        for part in axis.split("+"):
            stop = start + self._length(part, i)
            found.append(slice(start, stop))
            start = stop
        return found

    def unit_rows(self, axis: str, i: int | None = None) -> tuple[str, int] | None:
        """Return the heads that an axis is made of, and its rows of each; None if of none."""
        if axis in self.family.by_head:
            return "heads", int(self.family.by_head[axis](self.get) or 0)
        if axis in self.family.by_layer:
            return "layers", int(self.family.by_layer[axis](self.get) or 0)
        size = self.head_dim if i is None else self.size("head_dim", i)
        return {
            "heads": ("heads", size),
            "kv_heads": ("kv_heads", size),
            "each_head": ("heads", 1),
            "qkv_by_head": ("heads", 3 * size),
            "gated_heads": ("heads", 2 * size),
        }.get(axis)

    def _length(self, axis: str, i: int | None) -> int:
        unit = self.unit_rows(axis, i)
        if unit is not None:
            count = getattr(self, unit[0]) if i is None else self.size(unit[0], i)
            return int(count) * unit[1]
        if axis in CONFIG_KEYS or axis in EXPERT_KEYS:
            return int(getattr(self, axis) if i is None else self.size(axis, i))
        if axis in self.family.axes:
            return self._size(axis)
        return 1 if axis == "one" else self.max_positions + self.family.position_offset

    def _ruled(self, axis: str, otherwise: int) -> int:
        """Return the size of an axis by the family's rule, if it has one."""
        return self._size(axis, otherwise) if axis in self.family.axes else otherwise

    def _root(self) -> dict[str, Axes]:
        """Return the templates of the tensors outside the layers."""
        templates = self.family.templates(self.config)
        if self.tied:
            templates.pop(f"{self.family.head}.weight")
        return {name: axes for name, axes in templates.items() if "{i}" not in name}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: embedding first, then layer by layer, then the rest."""
        root = self._root()
        first = next(iter(root))
        order: list[tuple[str, int | None, int | None]] = [(first, None, None)]
        for i in range(self.layers):
            order += [(name, i, e) for name in self.inside(i) for e in self._experts_of(name)]
        order += [(name, None, None) for name in root if name != first]
        of_kinds = {self.kinds[i]: (i, table) for i, table in self._each_kind()}
        shaped = {
            kinds: {name: (axes, self.shape(axes, i)) for name, axes in table.items()}
            for kinds, (i, table) in [*of_kinds.items(), (None, (None, root))]
        }
        return {
            name.replace("{i}", str(i)).replace("{e}", str(e)): Tensor(
                *shaped[None if i is None else self.kinds[i]][name], i, name, e
            )
            for name, i, e in order
        }

    def shape(self, axes: Axes, i: int | None = None) -> tuple[int, ...]:
        """Return the shape of a tensor with these axes, of layer `i`."""
        return tuple(self.axis_size(axis, i) for axis in axes)

    @property
    def stacks(self) -> set[str]:
        """What files can have in a layer that are tensors of all its experts."""
        experts = self.family.experts
        return set() if experts is None else {name for name, _ in experts.stacks_of(experts.stacks)}

    def stacked(self) -> dict[str, Inside]:
        """Return where the tensors of experts lie in such stacks."""
        experts = self.family.experts
        if experts is None:
            return {}
        return {
            f"{self.prefix(i)}{experts.module}.{e}.{part}": Inside(
                f"{self.prefix(i)}{stack}", self.experts, e, len(parts), n,
                experts.interleaved, experts.transposed,
            )
            for i in self.with_units("experts")
            for stack, parts in experts.stacks_of(experts.stacks)
            for n, part in enumerate(parts)
            for e in range(self.experts)
        }  # fmt: skip

    def _experts_of(self, template: str) -> Sequence[int | None]:
        """Return the experts that have a tensor or a module each; None for one of no expert."""
        return range(self.experts) if "{e}" in template else (None,)

    def inputs(self, i: int) -> Iterator[tuple[str, ...]]:
        """Yield the linears of layer `i` by distinct input, those of every expert."""
        for point in POINTS:
            for modules, e in self._inputs_at(point, i):
                yield tuple(module.replace("{e}", str(e)) for module in modules)

    def _inputs_at(self, point: str, i: int) -> Iterator[tuple[tuple[str, ...], int | None]]:
        """Yield the templates of the linears that read one input there, and of which expert.

        The first of them shows that a layer has this input; of the others it can lack some.
        """
        first, table = self.family.inputs[POINTS.index(point)], self.inside(i)
        for modules in (first, *self.family.beside.get(point, ())):
            own = tuple(one for one in modules if f"{self.family.layer}{one}.weight" in table)
            if own[:1] == modules[:1]:
                for e in self._experts_of(modules[0]):
                    yield own, e

    def block_linears(self) -> Iterator[str]:
        """Yield the templates of the block linears: what ratios are fractions of."""
        groups = (*self.family.inputs, *chain(*self.family.beside.values()))
        for module in dict.fromkeys(chain(*groups)):
            yield f"{self.family.layer}{module}.weight"

    def prefix(self, i: int) -> str:
        """Return what the names of the tensors of layer `i` begin with."""
        return self.family.layer.replace("{i}", str(i))

    def module(self, point: str) -> str:
        """Return the module that reads the input called `q`, `o`, `gate` or `down`.

        It is that of layers with heads and FFN channels; experts have one each. Those that a layer
        has are `modules`.
        """
        return self.family.inputs[POINTS.index(point)][0]

    def modules(self, point: str, i: int) -> tuple[str, ...]:
        """Return the modules of layer `i` that read an input of this name, every expert's too."""
        found = self._inputs_at(point, i)
        return tuple(modules[0].replace("{e}", str(e)) for modules, e in found)

    def block(self, i: int) -> str:
        """Return the full name of layer `i` as a point."""
        return f"{self.prefix(i)[:-1]}:out"

    def point(self, i: int, point: str) -> str | None:
        """Return the full name of the one point of layer `i` that is called so, None without one.

        Statistics are kept under it.
        """
        places = self.places(i, point)
        return places[0].name if len(places) == 1 and places[0].expert is None else None

    def places(self, i: int, point: str) -> list[Place]:
        """Return all points of layer `i` that are called so: one, or every expert's, or none."""
        layer, experts = self.prefix(i), self.family.experts
        if point == "block":
            return [Place(self.block(i), self.hidden)]
        if point == "experts":
            if experts is None or not self.has(point, i):
                return []
            return [Place(f"{layer}{experts.module}:out", self.experts)]
        table = self.inside(i)
        return [
            Place(
                f"{layer}{modules[0].replace('{e}', str(e))}:in",
                self.axis_size(table[f"{self.family.layer}{modules[0]}.weight"][1], i),
                e,
            )
            for modules, e in self._inputs_at(point, i)
        ]

    def params(self, active: bool = False) -> dict[str, int]:
        """Return parameter counts by group; tied weights count once.

        With `active`, of experts only as many as a token is sent to.
        """
        experts = self.experts_per_token if active else self.experts
        router = ("router",) if experts else ()
        groups = dict.fromkeys((*GROUPS, *router, *KINDS_GROUPS, LAYER_INPUTS), 0)
        tables: list[tuple[int | None, Mapping[str, Axes]]] = [(None, self._root())]
        for i, table in [*tables, *self._each_kind()]:
            count = 1 if i is None else self.kinds.count(self.kinds[i])
            for name, axes in table.items():
                times = count * (experts if "{e}" in name else 1)
                groups[self._group(name, axes)] += times * prod(self.shape(axes, i))
        rare = (*KINDS_GROUPS, LAYER_INPUTS)
        return {name: n for name, n in groups.items() if n or name not in rare}

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
            return "convolutions"
        parts = {*"+".join(axes).split("+")}
        if LAYER_INPUT in parts:
            return LAYER_INPUTS
        if any(part.endswith("ffn") for part in parts):
            return "ffn"
        squeezed = any(part.endswith("_rank") for part in parts)
        return "attention" if squeezed or parts & self._by_head else "mixers"

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
    def routers(self) -> tuple[str, ...]:
        """The routers of all layers: what tells which experts a token is sent to."""
        return tuple(
            name.removesuffix(".weight")
            for name, tensor in self.tensors().items()
            if tensor.axes == ("experts", "hidden")
        )

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
        sizes = {self.kinds[i]: self.layer_params(i) for i in self.sorts}
        order = sorted(range(self.layers), key=lambda i: -sizes[self.kinds[i]])
        return self.first_of(order, count)

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


FLOPS_TOKENS = 2048
