"""Mistral: Llama's tensors without any biases, and a sliding window.

With `sliding_window: null` it computes exactly what Llama does and, unlike `LlamaConfig`, takes
any hidden size for any number of heads.
"""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    classes="Mistral",
    tensors=llama.FAMILY.tensors,
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    containers=("seed-oss",),
    not_convertible_if=("sliding_window",),
    as_container={"sliding_window": None},
    test_config={"sliding_window": 8},
)
