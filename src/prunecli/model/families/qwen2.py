"""Qwen 2 and 2.5: Llama with biases on q, k and v, always."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    classes="Qwen2",
    tensors={**llama.FAMILY.tensors, **llama.QKV_BIAS},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    containers=("seed-oss",),
    not_convertible_if=("use_sliding_window",),
    test_config={"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
)
