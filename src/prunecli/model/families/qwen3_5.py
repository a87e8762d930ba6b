"""Qwen 3.5: a gated delta net in three layers of four, attention with a gate in the fourth."""

from prunecli.model.families import gemma, llama, qwen3
from prunecli.model.families._base import Family
from prunecli.model.families._kinds import (
    DELTA_AXES,
    DELTA_DEFAULTS,
    DELTA_TEST,
    NEEDED,
    delta_net,
    delta_state,
    every_fourth,
    of_types,
    spread,
)

MIXER = llama.LAYER + "linear_attn."
ATTENTION = {
    **llama.ATTENTION_LINEARS,
    llama.ATTENTION + "q_proj.weight": ("gated_heads", "hidden"),
    **qwen3.QK_NORMS,
}
BIASES = {
    **llama.QKV_BIAS,
    llama.ATTENTION + "q_proj.bias": ("gated_heads",),
    **llama.O_BIAS,
}
KINDS = {"linear_attention": ("linear_attn",), "full_attention": ("self_attn",)}
# the one norm whose weight is not what is added to one, and what decays the state
INITIAL = {"linear_attn.norm.weight": 1.0, "dt_bias": 1.0, "A_log": spread(0.01, 16)}
DEFAULTS = {
    **llama.DEFAULTS,
    **DELTA_DEFAULTS,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 256,
}
TEST = {
    **DELTA_TEST,
    "attention_bias": True,
    "full_attention_interval": 2,
}


FAMILY = Family(
    name="qwen3-5",
    model_types=("qwen3_5_text",),
    classes="Qwen3_5",
    tensors={
        **llama.ROOT,
        **ATTENTION,
        **delta_net(MIXER),
        **llama.MLP_LINEARS,
        **llama.NORMS,
    },
    biases={"attention_bias": BIASES},
    left_out=("mtp.",),
    kinds=KINDS,
    kinds_of=of_types(every_fourth),
    needed=NEEDED,
    inputs=llama.INPUTS,
    beside={
        "q": (
            (
                "linear_attn.in_proj_qkv",
                "linear_attn.in_proj_z",
                "linear_attn.in_proj_b",
                "linear_attn.in_proj_a",
            ),
        ),
        "o": (("linear_attn.out_proj",),),
    },
    axes=DELTA_AXES,
    recurrences={"linear_attention": delta_state},
    layer_lists={"layer_types": every_fourth},
    norm_weight_offset=gemma.FAMILY.norm_weight_offset,
    initial=INITIAL,
    defaults={**DEFAULTS, "num_key_value_heads": 4},
    test_config=TEST,
)
