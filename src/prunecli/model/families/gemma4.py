"""Gemma 4, its text model, but for the mixture (26B-A4B).

Layers are of two types, whose heads have sizes of their own. In the small models (E2B, E4B) each
gets an embedding of its own beside the residual stream, and the last ones compute no keys and
values: they take those of the last layer of their type that does.
"""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import gemma2, llama
from prunecli.model.families._base import Family, Get, LayerInputs, SharedKeys
from prunecli.model.families._kinds import sized

FULL, SLIDING = "full_attention", "sliding_attention"
KEYS, GLOBAL_KEYS = "num_key_value_heads", "num_global_key_value_heads"
EVERY = 6  # layer has full attention, where config.json has no list
DIGITS = 5  # of a layer's number
SHARED = "num_kv_shared_layers"
GIVER = {kind: f"key-giving {kind}" for kind in (SLIDING, FULL)}
INPUT = llama.LAYER + "per_layer_"
TAKEN = "layers without keys and values of their own take theirs"
HEADS = (
    "the query heads of a KV head are not as many in layers of full attention as in others, and "
    "some layers take the keys and values of an earlier one"
)


def type_of(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`; the last has full attention, whatever config.json says."""
    types = config.get("layer_types")
    if i == config["num_hidden_layers"] - 1:
        return FULL
    if isinstance(types, list):
        return str(types[i])
    return SLIDING if (i + 1) % EVERY else FULL


def _some(kind: str, config: Mapping[str, Any], start: int, stop: int) -> bool:
    """Return whether one of these layers is of a type."""
    last, types = config["num_hidden_layers"] - 1, config.get("layer_types")
    if isinstance(types, list):  # which can be long, and this is asked of every layer
        return kind in types[start : min(stop, last)] or (kind == FULL and start <= last < stop)
    return any(type_of(config, j) == kind for j in range(start, stop))


def kinds_of(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
    """Return the type of layer `i`, which keys and values it has, and who needs it."""
    layers, kind = config["num_hidden_layers"], type_of(config, i)
    own = layers - (config.get(SHARED) or 0)
    found = [kind]
    if i >= own > 0:
        found.append("taker")
    else:
        same = config.get("attention_k_eq_v") and kind == FULL
        found += ["keys"] if same else ["keys", "values"]
        if not _some(kind, config, i + 1, own) and _some(kind, config, own, layers):
            found.append(GIVER.get(kind, kind))
    return (*found, *["first"] * (i == 0), *["last"] * (i == layers - 1))


def relayered(config: Mapping[str, Any], kept: list[int]) -> Mapping[str, Any]:
    """Return how many of the kept layers take keys and values of earlier ones."""
    return {SHARED: sum("taker" in kinds_of(config, i) for i in kept)}


def restated(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config that has the sizes of each layer with those of all layers of a type.

    It stays as it is, to be refused, where layers of one type differ or it makes no sense.
    """
    told, layers = config.get("per_layer_config"), config.get("num_hidden_layers")
    types, whole = config.get("layer_types"), {key: config.get(key) for key in ("head_dim", KEYS)}
    if not isinstance(told, dict) or not isinstance(layers, int) or None in whole.values():
        return config
    if not 0 < layers < 10**DIGITS or (isinstance(types, list) and len(types) != layers):
        return config
    numbers = {i for i in told if i.isdecimal() and len(i) <= DIGITS}
    by_layer = {int(i): told[i] for i in numbers if isinstance(told[i], dict)}
    full = {i for i in range(layers) if type_of(config, i) == FULL}
    sizes = [{**whole, **by_layer.get(i, {})} for i in sorted(full)]
    differ = any(one != sizes[0] or one.keys() != whole.keys() for one in sizes)
    if differ or len(by_layer) < len(told) or not by_layer.keys() <= full:
        return config
    if sizes[0][KEYS] != whole[KEYS] and not config.get("attention_k_eq_v"):
        return config
    plain = {key: value for key, value in config.items() if key != "per_layer_config"}
    return {**plain, "global_head_dim": sizes[0]["head_dim"], GLOBAL_KEYS: sizes[0][KEYS]}


def global_keys(get: Get) -> int | None:
    """Return the KV heads of full attention; they are those of others where values are not keys."""
    return get(GLOBAL_KEYS) if get("attention_k_eq_v") else None


def input_size(get: Get) -> int | None:
    """Return how many numbers a layer gets beside the residual stream."""
    size = get("hidden_size_per_layer_input")
    return None if size is None else int(size)


FAMILY = Family(
    name="gemma4",
    model_types=("gemma4_text",),
    classes="Gemma4",
    tensors={
        **gemma2.TENSORS,
        llama.ATTENTION + "q_norm.weight": ("head_dim",),
        llama.ATTENTION + "k_norm.weight": ("head_dim",),
        llama.LAYER + "layer_scalar": ("one",),
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    optional={
        "hidden_size_per_layer_input": {
            "model.embed_tokens_per_layer.weight": ("vocab", "layer_inputs"),
            "model.per_layer_model_projection.weight": ("layer_inputs", "hidden"),
            "model.per_layer_projection_norm.weight": ("layer_input",),
            INPUT + "input_gate.weight": ("layer_input", "hidden"),
            INPUT + "projection.weight": ("hidden", "layer_input"),
            llama.LAYER + "post_per_layer_input_norm.weight": ("hidden",),
        }
    },
    flags={"hidden_size_per_layer_input": True},
    only={"enable_moe_block": (False,), "use_bidirectional_attention": ("vision",)},
    inputs=llama.INPUTS,
    scalar="layer_scalar",
    writers=("per_layer_projection",),
    kinds={
        SLIDING: (),
        FULL: (),
        "keys": ("self_attn.k_proj", "self_attn.k_norm"),
        "values": ("self_attn.v_proj",),
        "taker": (),
        **dict.fromkeys(GIVER.values(), ()),
        "first": (),
        "last": (),
    },
    kinds_of=kinds_of,
    relayered=relayered,
    needed={
        **dict.fromkeys(GIVER.values(), TAKEN),
        "first": "a layer that goes leaves its scalar to the one before it",
        "last": "transformers gives full attention to whichever layer is the last",
    },
    unused={"taker": ("self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm")},
    axes=sized(layer_input=input_size),
    by_layer=sized(layer_inputs=input_size),
    sizes={
        FULL: sized(
            head_dim=lambda get: get("global_head_dim") or 512,
            kv_heads=global_keys,
        ),
        "taker": sized(
            cached=lambda get: 0,
            ffn=lambda get: 2 * get("intermediate_size") if get("use_double_wide_mlp") else None,
        ),
    },
    layer_inputs=LayerInputs(
        "model.embed_tokens_per_layer",
        "model.per_layer_model_projection",
        "model.per_layer_projection_norm",
        "per_layer_input",
    ),
    shared_keys=SharedKeys("shared_kv_states", GIVER, "taker"),
    restated=restated,
    post_norms=(*gemma2.POST_NORMS, "post_per_layer_input_norm"),
    fixed={"heads": HEADS},
    defaults={
        **gemma2.DEFAULTS,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": False,
        "use_double_wide_mlp": False,
    },
    layer_lists={"layer_types": type_of},
    scales_embedding=True,
    test_config={
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 259,
        "layer_types": [FULL, SLIDING, SLIDING, FULL],
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
        "sliding_window": 8,
    },
)
