"""Kinds of layers that several families have: rules that tell them, and mixers that have a state.

A mixer is what a layer has in the place of attention. It is as wide as its own heads are; what the
methods remove of layers with attention and FFN, they leave as it is there.
"""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families._base import Axes, Entry, Get, Kinds, Relayered, Size

# types of layers as older files call them
LEGACY = {"mamba": "linear_attention", "attention": "full_attention"}


# of which kinds a layer must stay
NEEDED = {"full_attention": "transformers counts the tokens of a text in the cache of such a layer"}


def of_types(rule: Entry, key: str = "layer_types") -> Kinds:
    """Return the rule of kinds that a list of types tells, or `rule` where the list is absent."""

    def kinds_of(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
        types = config.get(key)
        kind = str(types[i] if isinstance(types, list) else rule(config, i))
        return (LEGACY.get(kind, kind),)

    return kinds_of


def each_of(*rules: Kinds) -> Kinds:
    """Return the rule of layers that are of a kind by each of several rules."""
    return lambda config, i: tuple(kind for rule in rules for kind in rule(config, i))


def every_fourth(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`: every `full_attention_interval`-th attends, 4th by default."""
    interval = config.get("full_attention_interval") or 4
    return "linear_attention" if (i + 1) % interval else "full_attention"


TURNS = "no_rope_layers"


def rotates(config: Mapping[str, Any], i: int) -> int:
    """Return whether layer `i` turns queries and keys by their positions, as a list tells: 1 if so.

    Every `no_rope_layer_interval`-th does not, 4th by default, where there is no list.
    """
    listed = config.get(TURNS)
    if isinstance(listed, list) and listed:
        return int(bool(listed[i]))
    return int((i + 1) % (config.get("no_rope_layer_interval") or 4) != 0)


def feeds(config: Mapping[str, Any], i: int) -> str:
    """Return whether layer `i` is `sparse`, with experts, or `dense`, as Qwen's configs tell."""
    only, step = config.get("mlp_only_layers"), config.get("decoder_sparse_step") or 1
    dense = (isinstance(only, list) and i in only) or (i + 1) % step
    return "dense" if dense else "sparse"


def still_dense(config: Mapping[str, Any], kept: list[int]) -> Mapping[str, Any]:
    """Return what Qwen's configs say of these layers: the numbers of those that are dense."""
    dense = [n for n, i in enumerate(kept) if feeds(config, i) == "dense"]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


FIRST = "first_k_dense_replace"


def led_by(usual: int) -> Kinds:
    """Return the rule of layers that are dense up to a number, `usual` if it is not told."""

    def kinds_of(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
        first = config.get(FIRST)
        return ("dense" if i < (usual if first is None else first) else "sparse",)

    return kinds_of


def still_first(rule: Kinds) -> Relayered:
    """Return the rule of what config.json says of kept layers: how many of them are dense."""
    return lambda config, kept: {FIRST: sum("dense" in rule(config, i) for i in kept)}


def sized(**rules: Size) -> Mapping[str, Size]:
    """Return sizes of axes; a key that is needed and is absent, or is no number, makes none."""

    def whole(rule: Size) -> Size:
        def size(get: Get) -> int | None:
            def number(key: str) -> Any:
                value = get(key)
                return value if isinstance(value, int | float) else None

            try:
                return rule(number)
            except TypeError:  # of arithmetic with None
                return None

        return size

    return {axis: whole(rule) for axis, rule in rules.items()}


def delta_net(module: str, fused: bool = False) -> Mapping[str, Axes]:
    """Return the tensors of a gated delta net (arXiv 2412.06464), as Qwen 3 Next and 3.5 have it.

    `fused`: q, k, v and the gate are in one matrix, head by head, and beta and decay in another.
    """
    apart = {
        "in_proj_qkv.weight": ("delta_qkv", "hidden"),
        "in_proj_z.weight": ("delta_values", "hidden"),
        "in_proj_b.weight": ("delta_heads", "hidden"),
        "in_proj_a.weight": ("delta_heads", "hidden"),
    }
    together = {
        "in_proj_qkvz.weight": ("delta_qkv+delta_values", "hidden"),
        "in_proj_ba.weight": ("delta_heads+delta_heads", "hidden"),
    }
    own: Mapping[str, Axes] = {
        "conv1d.weight": ("delta_qkv", "one", "kernel"),
        "dt_bias": ("delta_heads",),
        "A_log": ("delta_heads",),
        "norm.weight": ("delta_head",),
        "out_proj.weight": ("hidden", "delta_values"),
    }
    return {module + name: axes for name, axes in {**(together if fused else apart), **own}.items()}


DELTA_AXES = sized(
    delta_heads=lambda get: get("linear_num_value_heads"),
    delta_head=lambda get: get("linear_value_head_dim"),
    delta_values=lambda get: get("linear_num_value_heads") * get("linear_value_head_dim"),
    delta_qkv=lambda get: (
        2 * get("linear_num_key_heads") * get("linear_key_head_dim")
        + get("linear_num_value_heads") * get("linear_value_head_dim")
    ),
    kernel=lambda get: get("linear_conv_kernel_dim"),
)


DELTA_DEFAULTS = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


DELTA_TEST = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def delta_state(get: Get) -> int:
    """Return the multiply-adds of a token: numbers of a state decay, recall, change, are read."""
    heads = get("linear_num_value_heads")
    return int(4 * heads * get("linear_key_head_dim") * get("linear_value_head_dim"))


def mamba(module: str) -> Mapping[str, Axes]:
    """Return the tensors of a Mamba 2 mixer (arXiv 2405.21060): one matrix has all that is read."""
    return {
        module + "in_proj.weight": (MAMBA_IN, "hidden"),
        module + "conv1d.weight": ("mamba_conv", "one", "kernel"),
        module + "dt_bias": ("mamba_heads",),
        module + "A_log": ("mamba_heads",),
        module + "D": ("mamba_heads",),
        module + "norm.weight": ("mamba_inner",),
        module + "out_proj.weight": ("hidden", "mamba_inner"),
    }


MAMBA_IN = "mamba_inner+mamba_conv+mamba_heads"


def mamba_axes(inner: Size, heads: str, state: str, groups: str, kernel: str) -> Mapping[str, Size]:
    """Return the sizes of a Mamba 2 mixer by its keys; `inner` are its channels."""
    return sized(
        mamba_inner=inner,
        mamba_conv=lambda get: (inner(get) or 0) + 2 * get(groups) * get(state),
        mamba_heads=lambda get: get(heads),
        kernel=lambda get: get(kernel),
    )


def spread(low: float, high: float) -> Any:
    """Return the rule of a new model's A_log: logarithms of numbers at equal distances."""

    def values(count: int) -> list[float]:
        from math import log

        step = (high - low) / max(1, count - 1)
        return [log(low + n * step) for n in range(count)]

    return values


def counted(count: int) -> list[float]:
    """Return what Mamba 2 begins with: the logarithms of 1, 2, 3 and so on."""
    from math import log

    return [log(n + 1) for n in range(count)]
