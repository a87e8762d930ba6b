"""Gemma 1: Llama with gains that count from one, and embeddings times sqrt(hidden)."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="gemma",
    model_types=("gemma",),
    classes="Gemma",
    tensors=llama.FAMILY.tensors,
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    hidden_divides=True,
    scales_embedding=True,
    norm_weight_offset=1.0,
    test_config={"attention_bias": True},
)
