"""SmolLM3: Llama without rotary positions in every fourth layer."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import llama
from prunecli.model.families._base import Family
from prunecli.model.families._kinds import TURNS, rotates


def attends(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`: only those without positions have a window, if any has."""
    windowed = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return "sliding_attention" if windowed and not rotates(config, i) else "full_attention"


FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    classes="SmolLM3",
    tensors=llama.FAMILY.tensors,
    biases=llama.FAMILY.biases,
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "pad_token_id": 128004,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    layer_lists={"layer_types": attends, TURNS: rotates},
    test_config={"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
)
