"""Gemma 2: norms before and behind, gains that count from one, embeddings times sqrt(hidden).

Logits of the head and of attention go through a soft cap, which only eager attention computes.
"""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

TENSORS = {
    **llama.ROOT,
    **llama.LINEARS,
    **llama.NORMS,
    llama.LAYER + "pre_feedforward_layernorm.weight": ("hidden",),
    llama.LAYER + "post_feedforward_layernorm.weight": ("hidden",),
}


POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
DEFAULTS = {
    **{key: value for key, value in llama.DEFAULTS.items() if key != "hidden_act"},
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    classes="Gemma2",
    tensors=TENSORS,
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    post_norms=POST_NORMS,
    defaults=DEFAULTS,
    layer_lists={
        "layer_types": lambda config, i: "sliding_attention" if (i + 1) % 2 else "full_attention"
    },
    hidden_divides=True,
    scales_embedding=True,
    norm_weight_offset=1.0,
    test_config={"query_pre_attn_scalar": 8, "sliding_window": 8},
)
