"""LFM3: LFM2 with norms behind too, windows in half of the attention, and a gate on every head."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import lfm2, llama, qwen3
from prunecli.model.families._base import INNER, Family
from prunecli.model.families._kinds import NEEDED, of_types, sized

GATE = llama.ATTENTION + "g_proj.weight"
POST_NORMS = ("post_operator_norm", "post_ffn_norm")


def mixes(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`, where config.json has no list: every other one attends."""
    if i % 4 == 2:
        return "full_attention"
    return "sliding_attention" if i and i % 4 == 0 else "conv"


FAMILY = Family(
    name="lfm3",
    model_types=("lfm3",),
    classes="Lfm3",
    tensors={
        **{name: axes for name, axes in lfm2.FAMILY.tensors.items() if llama.ATTENTION not in name},
        **llama.ATTENTION_LINEARS,
        **qwen3.QK_NORMS,
    },
    biases={
        "attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS},
        **lfm2.FAMILY.biases,
    },
    optional={
        "use_attention_gate": {GATE: ("each_head", "hidden")},
        "use_sandwich_norm": {f"{llama.LAYER}{norm}.weight": ("hidden",) for norm in POST_NORMS},
    },
    flags={"use_attention_gate": True, "use_sandwich_norm": True},
    final_norm=lfm2.FAMILY.final_norm,
    keys=lfm2.FAMILY.keys,
    stored_names=((".self_attn.gate_proj.", ".self_attn.g_proj."),),
    keeps_names=True,
    kinds={
        "conv": ("conv",),
        "full_attention": ("self_attn",),
        "sliding_attention": ("self_attn",),
    },
    kinds_of=of_types(mixes),
    needed=NEEDED,
    inputs=(
        (*llama.INPUTS[0], "self_attn.g_proj"),
        ("self_attn.o_proj",),
        *lfm2.FAMILY.inputs[2:],
    ),
    beside=lfm2.FAMILY.beside,
    axes=sized(kernel=lambda get: get("conv_L_cache")),
    fixed={"hidden": INNER.format("convolution")},
    post_norms=POST_NORMS,
    layer_lists={"layer_types": mixes},
    defaults={
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": 124893,
        "bos_token_id": 124894,
        "eos_token_id": 124900,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sliding_window": 256,
        "conv_L_cache": 7,
    },
    test_config={
        "conv_bias": True,
        "attention_bias": True,
        "layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"],
        "norm_eps": 1e-5,
        "sliding_window": 8,
    },
)
