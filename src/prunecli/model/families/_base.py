"""`Family`: a model family as data. Surgery, counting and checking need nothing more.

A tensor's name template maps to one axis name per dimension. Axes: `vocab`, `hidden`, `ffn`,
`heads` (query heads times head_dim rows), `kv_heads` (likewise), `head_dim`, `each_head` (one row
per query head), `qkv_by_head` (per head its rows of q, of k and of v), `gated_heads` (per query
head its rows of q and of a gate), `experts` (one row per expert), `positions`, `one`, and those
that a family has of its own; one of these that ends in `_ffn` is of an FFN, in `_rank` of what
attention is squeezed through. A fused projection names its segments in order:
`"heads+kv_heads+kv_heads"`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Axes = tuple[str, ...]


# what a layer's entry of a list in config.json is when the list is absent
Entry = Callable[[Mapping[str, Any], int], Any]
# what config.json says of a key, or its absence means; from that the size of an axis, or a number
Get = Callable[[str], Any]
Size = Callable[[Get], int | None]
# which kinds a layer is of, and what config.json says of the kinds of those layers that are kept
Kinds = Callable[[Mapping[str, Any], int], tuple[str, ...]]
Relayered = Callable[[Mapping[str, Any], list[int]], Mapping[str, Any]]
# a config.json in the words of the tables, where it has others
Restated = Callable[[dict[str, Any]], dict[str, Any]]


CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}


# the same of families with experts
EXPERT_KEYS = {"experts": "num_experts", "experts_per_token": "num_experts_per_tok"}


# why some families cannot lose an axis exactly
MEAN = "its LayerNorm subtracts the mean over all hidden channels, which their removal changes"
SQUARE = "its o_proj is hidden by hidden, so that heads and hidden cannot change"
HEAD_SIZE = "its config has no size of heads: it is hidden / heads, which their removal changes"
INNER = "the width of its {} follows that of the residual stream, and would have to shrink with it"
OF_EXPERTS = "every expert has channels of its own, and a plan has one list of them for a layer"


def windows(usual: int) -> Entry:
    """Return the rule of `sliding_window_pattern`, which is `usual` where config.json lacks it.

    A number n: every n-th layer has full attention. Letters, L for a window and G for full
    attention: they repeat from the first layer on, and the last layer has full attention. 0 or
    null: all have.
    """

    def kind(config: Mapping[str, Any], i: int) -> str:
        pattern = config.get("sliding_window_pattern", usual) or 1
        if isinstance(pattern, str):
            full = pattern[i % len(pattern)] == "G" or i == config[CONFIG_KEYS["layers"]] - 1
        else:
            full = (i + 1) % pattern == 0
        return "full_attention" if full else "sliding_attention"

    return kind


@dataclass(frozen=True)
class Experts:
    """Where the experts of a layer are: FFNs, of which a router chooses some for every token.

    Attributes:
        module: the experts of a layer, as files name them.
        gate, up, down: the linears of an expert; no gate where it has none.
        moved: modules of a layer as transformers calls them, and as files do.
        stacks: what files can have in a layer in place of tensors of each expert: gate and up of
            all, and down of all; where linears have biases, these end in `_bias` there.
        stacked: whether files always have those.
        biased: whether the linears have biases.
        interleaved: rows of gate and up take turns in their stack; else they follow one another.
        transposed: matrices are stacked as [in, out].
        groups: the config keys of how many equal groups they are in, and of how many of these a
            token takes experts; None where there are none.
    """

    module: str
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    moved: tuple[tuple[str, str], ...] = ()
    stacks: tuple[str, ...] = ()
    stacked: bool = False
    biased: bool = False
    interleaved: bool = False
    transposed: bool = False
    groups: tuple[str, str] | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of an expert, the last one that which writes."""
        return (*((self.gate,) if self.gate else ()), self.up, self.down)

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """What a linear of an expert has, and what the name of a stack of these ends in."""
        return (("weight", ""), *((("bias", "_bias"),) if self.biased else ()))

    def stacks_of(self, names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the stacks by name, and which tensors of an expert lie in each, in order."""
        for name, linears in zip(names, (self.linears[:-1], self.linears[-1:]), strict=False):
            for kind, end in self.kinds:
                yield f"{name}{end}", tuple(f"{linear}.{kind}" for linear in linears)


@dataclass(frozen=True)
class LayerInputs:
    """What every layer gets of a token beside the residual stream: its own part of an embedding.

    The parts of all layers lie side by side, in columns of the embedding and in rows of what adds
    to it a projection of the token's usual one.

    Attributes:
        embedding, projection, norm: these modules outside the layers.
        argument: as what a layer's forward takes its part.
    """

    embedding: str
    projection: str
    norm: str
    argument: str


@dataclass(frozen=True)
class SharedKeys:
    """Layers that compute no keys and values: they take those of an earlier one.

    Attributes:
        argument: as what a layer's forward takes a mapping, which has them by the type of layer.
        giver: the kind of the layers that give theirs, by that type.
        taker: the kind of the layers that take theirs, of whichever type.
    """

    argument: str
    giver: Mapping[str, str]
    taker: str


@dataclass(frozen=True)
class Family:
    """One family's tables.

    Attributes:
        model_types: the `model_type`s of config.json that this family reads; the first is written.
        classes: the prefix of transformers' class names (`Llama` for `LlamaForCausalLM`).
        layer: what the names of a layer's tensors begin with.
        embedding, final_norm, head, positions: the modules outside the layers; positions where
            they are learned.
        keys: config keys, by the axis or by the key of Llama, where they are not the same.
        aliases: config keys of older checkpoints -> those that transformers writes.
        stored_names: parts of names in older checkpoints, and what they are here, in this order.
        keeps_names: files are written with those parts, as transformers writes them.
        buffers: ends of names of stored tensors that transformers computes.
        left_out: beginnings of names of stored tensors that only predict further tokens (`{layers}`
            is the number of layers).
        only: config keys -> the values that make it a model that these tables describe.
        variants: families of other models of these types, by `when`.
        when: tells by config.json whether a model is of this one, which is a variant.
        tensors: name template -> axes, of the tensors that are always there (`{i}` is the layer,
            `{e}` the expert).
        biases: config flag -> the biases that exist when it is true.
        optional: config flag -> the other tensors that exist when it is true.
        flags: what one of these flags means when config.json lacks it.
        inputs: linears of a layer by distinct input: those of one tuple read the same tensor.
        kinds: kinds of layers, and the modules that only layers of this kind have: a layer can be
            of several. Without any, all layers are alike.
        kinds_of: which of these kinds a layer is of.
        needed: kinds of which one layer must stay, and why.
        beside: the inputs of other kinds of layers, by the point (q, o, gate or down) whose place
            they take there.
        axes: the sizes of other axes than those above, or of one that no key tells by itself;
            `scored` are the numbers of a query head where those of a value are others, `cached`
            those that a layer keeps of a token where these are not its keys and values.
        by_head: axes of its own that have rows of every query head -> how many of each.
        by_layer: axes of its own that have rows of every layer -> how many of each.
        sizes: kinds of layers -> the sizes that these have of their own: `head_dim`, `kv_heads`,
            `cached`, or `ffn`, a multiple of that of others.
        layer_inputs: what layers get beside the residual stream, None where that is nothing.
        shared_keys: layers that take the keys and values of earlier ones, None where none do.
        scalar: the number of a layer by which all that leaves it is multiplied, None without one.
        writers: linears, beside those out of heads and FFN channels, that write to the residual
            stream.
        unused: kinds of layers -> modules that files can have there, although nothing reads them.
        restated: what config.json says in other words than those of these tables, in theirs.
        relayered: the config keys, beside `layer_lists`, that tell of which kinds the kept layers
            are.
        as_child: config keys to set in every pruned model.
        recurrences: kinds of layers with a state -> the multiply-adds that update and read it, of
            one token.
        experts: the experts of a layer, None where it has one FFN.
        post_norms: norms of what attention and what the FFN give, before it is added to the stream.
        norms_before: kinds of layers -> those of `post_norms` that norm what goes in there.
        joined: tensors of a layer -> the parts that files have instead, whose rows follow one
            another.
        fixed: axes that a model of this family cannot lose exactly, and why.
        defaults: what other config keys mean when config.json lacks them.
        layer_lists: config keys with one entry per layer, thinned out with the layers, and what an
            entry is when the list is absent (None: there is none then).
        hidden_divides: the config class refuses hidden sizes that heads do not divide.
        scales_embedding: embeddings are multiplied by sqrt(hidden), which surgery undoes.
        norm_weight_offset: a norm multiplies by its weight plus this.
        logits_times: the config key of what logits are multiplied by.
        initial: ends of names -> what vectors begin with in a new model that are no norm's: a
            number, or a rule that makes so many.
        position_offset: learned positions begin at this row of their table.
        containers: families that can hold the same computation exactly, in order of preference.
        not_convertible_if: config keys that, when set, forbid the move into another container.
        as_container: config keys to set when this family holds another one's weights.
        test_config: config overrides for the random models of the tests.
    """

    name: str
    model_types: tuple[str, ...]
    classes: str
    tensors: Mapping[str, Axes]
    inputs: tuple[tuple[str, ...], ...]
    layer: str = "model.layers.{i}."
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    positions: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    stored_names: tuple[tuple[str, str], ...] = ()
    keeps_names: bool = False
    buffers: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] | None = None
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kinds_of: Kinds | None = None
    needed: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    axes: Mapping[str, Size] = field(default_factory=dict)
    by_head: Mapping[str, Size] = field(default_factory=dict)
    by_layer: Mapping[str, Size] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Size]] = field(default_factory=dict)
    layer_inputs: LayerInputs | None = None
    shared_keys: SharedKeys | None = None
    scalar: str | None = None
    writers: tuple[str, ...] = ()
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    restated: Restated = dict
    relayered: Relayered | None = None
    as_child: Mapping[str, Any] = field(default_factory=dict)
    recurrences: Mapping[str, Size] = field(default_factory=dict)
    experts: Experts | None = None
    post_norms: tuple[str, ...] = ()
    norms_before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, Mapping[str, Axes]] = field(default_factory=dict)
    optional: Mapping[str, Mapping[str, Axes]] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_lists: Mapping[str, Entry | None] = field(default_factory=lambda: {"layer_types": None})
    hidden_divides: bool = False
    scales_embedding: bool = False
    norm_weight_offset: float = 0.0
    logits_times: str | None = None
    initial: Mapping[str, float | Callable[[int], list[float]]] = field(default_factory=dict)
    position_offset: int = 0
    containers: tuple[str, ...] = ()
    not_convertible_if: tuple[str, ...] = ()
    as_container: Mapping[str, Any] = field(default_factory=dict)
    test_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """What the name of the module begins with that makes hidden states of ids."""
        return self.layer.partition(".")[0]

    def key(self, axis: str) -> str:
        """Return the config key of an axis, or of what is `axis` in Llama's."""
        return self.keys.get(axis, {**CONFIG_KEYS, **EXPERT_KEYS}.get(axis, axis))

    def renamed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `config` with the keys that transformers writes."""
        return self.restated({self.aliases.get(key, key): config[key] for key in config})

    def own_name(self, stored: str) -> str:
        """Return a tensor's name as transformers writes it, of one that a file has."""
        for old, new in self.stored_names:
            stored = stored.replace(old, new)
        return stored

    def saved_name(self, own: str) -> str:
        """Return what a file calls a tensor that is written."""
        for old, new in reversed(self.stored_names) if self.keeps_names else ():
            own = own.replace(new, old)
        return own

    def flag(self, config: Mapping[str, Any], name: str) -> bool:
        """Return a flag of `config`, or what its absence means."""
        value = config.get(name)
        return self.flags.get(name, False) if value is None else bool(value)

    def templates(self, config: Mapping[str, Any]) -> dict[str, Axes]:
        """Return every tensor template that a model with this config has, with its axes."""
        flagged = [*self.biases.items(), *self.optional.items()]
        tables = [table for name, table in flagged if self.flag(config, name)]
        return {**self.tensors, **{name: axes for table in tables for name, axes in table.items()}}
