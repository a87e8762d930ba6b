"""DeepSeek V3, R1 and Moonlight: latent attention, and experts in groups.

Queries, if config.json says so, and keys with values are squeezed through a few numbers, of which
every head reads all. A head is its rows of what unfolds these, and its columns of o_proj.
"""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import glm4_moe, llama, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Axes, Experts, Family
from prunecli.model.families._kinds import FIRST, led_by, sized, still_first

TENSORS: Mapping[str, Axes] = {
    **llama.ROOT,
    llama.ATTENTION + "q_proj.weight": ("heads_qk", "hidden"),
    llama.ATTENTION + "q_a_proj.weight": ("q_rank", "hidden"),
    llama.ATTENTION + "q_a_layernorm.weight": ("q_rank",),
    llama.ATTENTION + "q_b_proj.weight": ("heads_qk", "q_rank"),
    llama.ATTENTION + "kv_a_proj_with_mqa.weight": ("kv_rank+rope_rank", "hidden"),
    llama.ATTENTION + "kv_a_layernorm.weight": ("kv_rank",),
    llama.ATTENTION + "kv_b_proj.weight": ("heads_kv", "kv_rank"),
    llama.ATTENTION + "o_proj.weight": ("hidden", "heads"),
    **{name: axes for name, axes in qwen3_moe.TENSORS.items() if llama.MLP in name},
    **qwen3_moe.DENSE,
    **qwen3_moe.shared_expert("shared_experts"),
    llama.MLP + "gate.e_score_correction_bias": ("experts",),
    **llama.NORMS,
}
BIASES: Mapping[str, Axes] = {
    llama.ATTENTION + "q_a_proj.bias": ("q_rank",),
    llama.ATTENTION + "kv_a_proj_with_mqa.bias": ("kv_rank+rope_rank",),
    **llama.O_BIAS,
}
KINDS = {
    "latent": ("self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"),
    "whole": ("self_attn.q_proj",),
    "dense": qwen3_moe.KINDS["dense"],
    "sparse": glm4_moe.SPARSE,
}


def squeezed(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
    """Return whether queries are `latent`; null says that they are not."""
    return ("whole" if "q_lora_rank" in config and config["q_lora_rank"] is None else "latent",)


feeds = led_by(3)
INPUTS = (
    ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    ("self_attn.o_proj",),
    *qwen3_moe.INPUTS[2:],
)
BESIDE = {
    "q": (
        ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"),
        ("self_attn.q_b_proj",),
        ("self_attn.kv_b_proj",),
    ),
    **qwen3_moe.beside("mlp.shared_experts."),
}
AXES = sized(
    dense_ffn=lambda get: get("intermediate_size"),
    shared_ffn=lambda get: get("n_shared_experts") * get("moe_intermediate_size"),
    q_rank=lambda get: get("q_lora_rank"),
    kv_rank=lambda get: get("kv_lora_rank"),
    rope_rank=lambda get: get("qk_rope_head_dim"),
    scored=lambda get: get("qk_nope_head_dim") + get("qk_rope_head_dim"),
    cached=lambda get: get("kv_lora_rank") + get("qk_rope_head_dim"),
)
BY_HEAD = sized(
    heads_qk=lambda get: get("qk_nope_head_dim") + get("qk_rope_head_dim"),
    heads_kv=lambda get: get("qk_nope_head_dim") + get("v_head_dim"),
)
TEST = {
    "intermediate_size": 112,
    "moe_intermediate_size": 80,
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_experts_per_tok": 2,
}


FAMILY = Family(
    name="deepseek-v3",
    model_types=("deepseek_v3",),
    classes="DeepseekV3",
    tensors=TENSORS,
    biases={"attention_bias": BIASES},
    keys={"ffn": "moe_intermediate_size", "experts": "n_routed_experts", "head_dim": "v_head_dim"},
    aliases={"num_local_experts": "n_routed_experts"},
    left_out=glm4_moe.FAMILY.left_out,
    only={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)},
    kinds=KINDS,
    kinds_of=lambda config, i: (*squeezed(config, i), *feeds(config, i)),
    relayered=still_first(feeds),
    inputs=INPUTS,
    beside=BESIDE,
    axes=AXES,
    by_head=BY_HEAD,
    experts=Experts("mlp.experts", groups=("n_group", "topk_group")),
    fixed={"ffn": OF_EXPERTS},
    initial=glm4_moe.FAMILY.initial,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "num_key_value_heads": 128,
        "head_dim": 64,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        FIRST: 3,
    },
    test_config={
        **TEST,
        "attention_bias": True,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        FIRST: 1,
    },
)
