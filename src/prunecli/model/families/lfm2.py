"""LFM2: short convolutions in most layers, grouped-query attention in the others, an FFN in all."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import llama
from prunecli.model.families._base import INNER, Family, Get
from prunecli.model.families._kinds import NEEDED, of_types, sized

CONV, FFN = llama.LAYER + "conv.", llama.LAYER + "feed_forward."


def mixes(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`, as `full_attn_idxs` tells: without it all attend."""
    attending = config.get("full_attn_idxs")
    attends = not isinstance(attending, list) or i in attending
    return "full_attention" if attends else "conv"


def relayered(config: Mapping[str, Any], kept: list[int]) -> Mapping[str, Any]:
    """Return the numbers of the kept layers that attend, where config.json has numbers."""
    attending = config.get("full_attn_idxs")
    if not isinstance(attending, list):
        return {}
    return {"full_attn_idxs": [n for n, i in enumerate(kept) if i in attending]}


def channels(get: Get) -> int | None:
    """Return how many FFN channels there are: two thirds of what is given, as a multiple."""
    given, multiple = get("intermediate_size"), int(get("block_multiple_of"))
    if given is None or not get("block_auto_adjust_ff_dim"):
        return None if given is None else int(given)
    size = int(2 * given / 3)
    if get("block_ffn_dim_multiplier") is not None:
        size = -(-int(get("block_ffn_dim_multiplier") * size) // multiple) * multiple
    return size


FAMILY = Family(
    name="lfm2",
    model_types=("lfm2",),
    classes="Lfm2",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        "model.embedding_norm.weight": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
        llama.ATTENTION + "q_proj.weight": ("heads", "hidden"),
        llama.ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "out_proj.weight": ("hidden", "heads"),
        llama.ATTENTION + "q_layernorm.weight": ("head_dim",),
        llama.ATTENTION + "k_layernorm.weight": ("head_dim",),
        CONV + "in_proj.weight": ("hidden+hidden+hidden", "hidden"),
        CONV + "conv.weight": ("hidden", "one", "kernel"),
        CONV + "out_proj.weight": ("hidden", "hidden"),
        FFN + "w1.weight": ("ffn", "hidden"),
        FFN + "w3.weight": ("ffn", "hidden"),
        FFN + "w2.weight": ("hidden", "ffn"),
        llama.LAYER + "operator_norm.weight": ("hidden",),
        llama.LAYER + "ffn_norm.weight": ("hidden",),
    },
    biases={
        "conv_bias": {
            CONV + "in_proj.bias": ("hidden+hidden+hidden",),
            CONV + "conv.bias": ("hidden",),
            CONV + "out_proj.bias": ("hidden",),
        }
    },
    final_norm="model.embedding_norm",
    keys={"rms_norm_eps": "norm_eps"},
    aliases={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
    kinds={"conv": ("conv",), "full_attention": ("self_attn",)},
    kinds_of=of_types(mixes),
    needed=NEEDED,
    inputs=(
        *llama.INPUTS[:1],
        ("self_attn.out_proj",),
        ("feed_forward.w1", "feed_forward.w3"),
        ("feed_forward.w2",),
    ),
    beside={"q": (("conv.in_proj",),), "o": (("conv.out_proj",),)},
    axes=sized(ffn=channels, kernel=lambda get: get("conv_L_cache")),
    as_child={"block_auto_adjust_ff_dim": False},
    fixed={"hidden": INNER.format("convolution")},
    layer_lists={"layer_types": mixes},
    relayered=relayered,
    defaults={
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    test_config={
        "full_attn_idxs": [1, 3],
        "conv_bias": True,
        "intermediate_size": 113,
        "block_multiple_of": 16,
        "norm_eps": 1e-5,
    },
)
