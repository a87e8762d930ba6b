"""Granite with windows in three layers of four, a sink for every head, and bases of positions."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import granite, llama
from prunecli.model.families._base import Family


def base(config: Mapping[str, Any], i: int) -> Any:
    """Return the base of layer `i`'s rotary positions: that of all layers."""
    rope: Mapping[str, Any] = config.get("rope_parameters") or config
    return rope.get("rope_theta", 10000.0)


FAMILY = Family(
    name="granite-swa",
    model_types=("granite_swa",),
    classes="GraniteSWA",
    tensors={**llama.FAMILY.tensors, llama.ATTENTION + "sinks": ("each_head",)},
    biases=llama.FAMILY.biases,
    inputs=llama.INPUTS,
    initial={"sinks": 0.0},
    defaults={
        **granite.FAMILY.defaults,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "sliding_window": 128,
        "bos_token_id": 100257,
        "eos_token_id": 100257,
    },
    layer_lists={
        "layer_types": lambda config, i: "sliding_attention" if i % 4 else "full_attention",
        "layer_rope_theta": base,
    },
    test_config={**granite.FAMILY.test_config, "sliding_window": 8},
)
