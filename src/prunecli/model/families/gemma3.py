"""Gemma 3, its text model: Gemma 2 with norms on every query and key head, and no soft caps."""

from prunecli.model.families import gemma2, llama
from prunecli.model.families._base import Family, windows

FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    classes="Gemma3",
    tensors={
        **gemma2.TENSORS,
        llama.ATTENTION + "q_norm.weight": ("head_dim",),
        llama.ATTENTION + "k_norm.weight": ("head_dim",),
    },
    biases=gemma2.FAMILY.biases,
    inputs=llama.INPUTS,
    post_norms=gemma2.POST_NORMS,
    defaults={
        **gemma2.DEFAULTS,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
    },
    layer_lists={"layer_types": windows(6)},
    hidden_divides=True,
    scales_embedding=True,
    norm_weight_offset=1.0,
    test_config={"query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2},
)
