"""SmolLM3: Llama without rotary positions in every fourth layer."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import llama
from prunecli.model.families._base import Family


def rotates(config: Mapping[str, Any], i: int) -> int:
    """Return whether layer `i` has rotary positions, as `no_rope_layers` tells: 1 if so."""
    given = config.get("no_rope_layers")
    return given[i] if given else int((i + 1) % config.get("no_rope_layer_interval", 4) != 0)


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
    layer_lists={"layer_types": attends, "no_rope_layers": rotates},
    test_config={"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
)
