"""Ministral of 2024: Llama's tensors without any biases, and a window in layers that say so."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import Family, llama


def kind(config: Mapping[str, Any], i: int) -> str:
    """Return what layer `i` is where config.json has no list: all have the window, or none."""
    windowed = config.get("sliding_window", 4096) is not None
    return "sliding_attention" if windowed else "full_attention"


FAMILY = Family(
    name="ministral",
    model_types=("ministral",),
    classes="Ministral",
    tensors=llama.FAMILY.tensors,
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    layer_lists={"layer_types": kind},
    test_config={"sliding_window": 8},
)
