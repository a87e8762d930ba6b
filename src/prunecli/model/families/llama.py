"""Llama 1, 2, 3 and everything saved as `llama`."""

from prunecli.model.families._base import Family

LAYER = "model.layers.{i}."
ATTENTION = LAYER + "self_attn."
MLP = LAYER + "mlp."
ROOT = {
    "model.embed_tokens.weight": ("vocab", "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocab", "hidden"),
}


ATTENTION_LINEARS = {
    ATTENTION + "q_proj.weight": ("heads", "hidden"),
    ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
    ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
    ATTENTION + "o_proj.weight": ("hidden", "heads"),
}


MLP_LINEARS = {
    MLP + "gate_proj.weight": ("ffn", "hidden"),
    MLP + "up_proj.weight": ("ffn", "hidden"),
    MLP + "down_proj.weight": ("hidden", "ffn"),
}


LINEARS = {**ATTENTION_LINEARS, **MLP_LINEARS}


NORMS = {
    LAYER + "input_layernorm.weight": ("hidden",),
    LAYER + "post_attention_layernorm.weight": ("hidden",),
}


QKV_BIAS = {
    ATTENTION + "q_proj.bias": ("heads",),
    ATTENTION + "k_proj.bias": ("kv_heads",),
    ATTENTION + "v_proj.bias": ("kv_heads",),
}


O_BIAS = {ATTENTION + "o_proj.bias": ("hidden",)}
MLP_BIAS = {
    MLP + "gate_proj.bias": ("ffn",),
    MLP + "up_proj.bias": ("ffn",),
    MLP + "down_proj.bias": ("hidden",),
}


INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    classes="Llama",
    tensors={**ROOT, **LINEARS, **NORMS},
    biases={"attention_bias": {**QKV_BIAS, **O_BIAS}, "mlp_bias": MLP_BIAS},
    inputs=INPUTS,
    defaults=DEFAULTS,
    hidden_divides=True,
    containers=("mistral", "seed-oss"),
)
