"""ERNIE 4.5: Llama with one flag for all biases, and interleaved rotary positions."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="ernie4-5",
    model_types=("ernie4_5",),
    classes="Ernie4_5",
    tensors=llama.FAMILY.tensors,
    biases={"use_bias": {**llama.QKV_BIAS, **llama.O_BIAS, **llama.MLP_BIAS}},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    test_config={"use_bias": True},
)
