"""`Layout`: a config.json read through its family: sizes, layers, tensors, points. No torch.

The points of a layer are the inputs of its linears, under which statistics are kept: `q`, `o`,
`gate` and `down`, and what is in their place in layers of other kinds.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple, Self

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

# the axis of one layer's part of what layers get beside the residual stream
LAYER_INPUT = "layer_input"
# of ids between layers: digits that every compute type holds exactly, of any vocabulary
BASE, DIGITS = 256, 4
ATTENTION = {"full_attention", "sliding_attention"}
POINTS = ("q", "o", "gate", "down")
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


def named(template: str, layer: int | None, expert: int | None) -> str:
    """Return the name that a template gives the tensor of a layer, and of an expert of it."""
    return template.replace("{i}", str(layer)).replace("{e}", str(expert))


class Place(NamedTuple):
    """A point of a layer: its full name, how many channels it has, and of which expert it is."""

    name: str
    width: int
    expert: int | None = None


class Layout:
    """What a model consists of. `config` is its config.json.

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
    def read(cls, folder: str | Path) -> Self:
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
        few = self.too_few_experts(self.experts) if self.experts else None
        if few is not None:
            raise InputError(f"config.json has {self.experts} experts: {few[0]}")

    def too_few_experts(self, count: int) -> tuple[str, str] | None:
        """Return why a layer cannot have so many experts only, and what to do; None if it can.

        The score of a group is that of its two best experts, also where there is one group.
        """
        assert self.family.experts is not None
        each, (groups, open_groups) = self.experts_per_token, self.expert_groups
        pair = 1 if self.family.experts.groups is None else 2
        least = groups * max(pair, -(-each // min(open_groups, groups)))
        if count >= least and count % groups == 0:
            return None
        if groups > 1:
            why = f"every token is sent to {each} out of {open_groups} of {groups} equal groups"
            return why, f"keep a multiple of {groups}, {least} at least"
        why = (
            f"every token is sent to {each}"
            if each == least
            else "its router compares the two best"
        )
        return why, f"keep {least} at least"

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
        return {
            self.prefix(i) + whole: [self.prefix(i) + part for part in parts]
            for whole, parts in self.family.joined.items()
            for i in range(self.layers)
            if self.family.layer + whole in self.inside(i)
        }

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

    @property
    def norm_spans_heads(self) -> bool:
        """Whether a norm runs over all heads together, so that removing one changes the others."""
        return any(
            axes in (("heads",), ("kv_heads",)) and not name.endswith(".bias")
            for name, axes in self.family.tensors.items()
        )

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for, in tokens.

        Raises InputError where config.json does not tell.
        """
        positions = self.get("max_position_embeddings")
        if positions is None:
            raise InputError("config.json lacks max_position_embeddings")
        return int(positions)

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
            named(name, i, e): Tensor(
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

    @property
    def routers(self) -> tuple[str, ...]:
        """The routers of all layers: what tells which experts a token is sent to."""
        return tuple(
            name.removesuffix(".weight")
            for name, tensor in self.tensors().items()
            if tensor.axes == ("experts", "hidden")
        )
