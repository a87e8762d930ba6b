"""Qwen 3: Llama with norms on every query and key head, which nothing else here can hold."""

from collections.abc import Mapping

from prunecli.model.families import llama
from prunecli.model.families._base import Axes, Family

QK_NORMS: Mapping[str, Axes] = {
    llama.ATTENTION + "q_norm.weight": ("head_dim",),
    llama.ATTENTION + "k_norm.weight": ("head_dim",),
}


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    classes="Qwen3",
    tensors={**llama.FAMILY.tensors, **QK_NORMS},
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    not_convertible_if=("use_sliding_window",),
)
