"""Ministral 3: Mistral with rotary positions by YaRN, and queries scaled by their position."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="ministral3",
    model_types=("ministral3",),
    classes="Ministral3",
    tensors=llama.FAMILY.tensors,
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
        "pad_token_id": 11,
    },
    test_config={"sliding_window": 8},
)
