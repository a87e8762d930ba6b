"""OLMo Hybrid: a gated delta net in three layers of four, OLMo 3's attention in the fourth.

Norms are before the delta net and its FFN, but behind attention and its FFN.
"""

from collections.abc import Mapping
from math import exp, expm1, log
from typing import Any

from prunecli.model.families import llama, olmo2
from prunecli.model.families._base import Family
from prunecli.model.families._kinds import (
    DELTA_AXES,
    DELTA_TEST,
    NEEDED,
    delta_state,
    of_types,
    sized,
    spread,
)
from prunecli.model.families.qwen3_5 import MIXER

READERS = tuple(f"linear_attn.{name}_proj" for name in "qkvabg")


def mixes(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`, where config.json has no list: one attends at least."""
    last = min(4, int(config["num_hidden_layers"])) - 1
    return "full_attention" if i % 4 == last else "linear_attention"


def restated(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with the sizes of the delta net, which follow others where they are absent.

    They stay in a pruned model, in which these others are smaller.
    """

    def told(key: str, otherwise: Any) -> Any:
        value = config.get(key)
        return otherwise if value is None else value

    heads, hidden = (told(key, DEFAULTS[key]) for key in ("num_attention_heads", "hidden_size"))
    keys = told("linear_num_key_heads", heads)
    key_dim = told("linear_key_head_dim", int(0.75 * hidden / keys))
    return {
        **config,
        "linear_num_key_heads": keys,
        "linear_num_value_heads": told("linear_num_value_heads", heads),
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": told("linear_value_head_dim", 2 * key_dim),
    }


def first_steps(count: int) -> list[float]:
    """Return biases whose softplus are steps from 0.001 to 0.1, at equal ratios."""
    low, high = log(0.001), log(0.1)
    steps = [exp(low + n * (high - low) / max(1, count - 1)) for n in range(count)]
    return [step + log(-expm1(-step)) for step in steps]


DEFAULTS = {
    **llama.DEFAULTS,
    "hidden_size": 3840,
    "num_attention_heads": 30,
    "max_position_embeddings": 65536,
    "pad_token_id": 100277,
    "bos_token_id": None,
    "eos_token_id": 100257,
    "linear_conv_kernel_dim": 4,
}
FAMILY = Family(
    name="olmo-hybrid",
    model_types=("olmo_hybrid",),
    classes="OlmoHybrid",
    tensors={
        **olmo2.TENSORS,
        llama.LAYER + "input_layernorm.weight": ("hidden",),
        MIXER + "q_proj.weight": ("delta_keys", "hidden"),
        MIXER + "k_proj.weight": ("delta_keys", "hidden"),
        MIXER + "v_proj.weight": ("delta_values", "hidden"),
        MIXER + "a_proj.weight": ("delta_heads", "hidden"),
        MIXER + "b_proj.weight": ("delta_heads", "hidden"),
        MIXER + "g_proj.weight": ("delta_values", "hidden"),
        MIXER + "o_proj.weight": ("hidden", "delta_values"),
        MIXER + "conv1d.weight": ("delta_qkv", "one", "kernel"),
        MIXER + "A_log": ("delta_heads",),
        MIXER + "dt_bias": ("delta_heads",),
        MIXER + "o_norm.weight": ("delta_head",),
    },
    biases=olmo2.FAMILY.biases,
    stored_names=(
        (".attention_layer_norm.", ".input_layernorm."),
        (".feedforward_layer_norm.", ".post_attention_layernorm."),
    ),
    keeps_names=True,
    left_out=("mtp.",),
    kinds={
        "linear_attention": ("linear_attn", "input_layernorm"),
        "full_attention": ("self_attn", "post_feedforward_layernorm"),
    },
    kinds_of=of_types(mixes),
    needed={
        **NEEDED,
        "linear_attention": "transformers asks for a layer of either kind",
    },
    inputs=olmo2.FAMILY.inputs,
    beside={"q": (READERS,), "o": (("linear_attn.o_proj",),)},
    axes={
        **DELTA_AXES,
        **sized(
            delta_keys=lambda get: get("linear_num_key_heads") * get("linear_key_head_dim"),
        ),
    },
    recurrences={"linear_attention": delta_state},
    layer_lists={"layer_types": mixes},
    post_norms=olmo2.POST_NORMS,
    norms_before={"linear_attention": olmo2.POST_NORMS[:1]},
    # transformers writes thirds, whatever the sizes of q, k and v
    joined={
        "linear_attn.conv1d.weight": tuple(f"linear_attn.{one}_conv1d.weight" for one in "qkv")
    },
    restated=restated,
    initial={"A_log": spread(0.01, 16), "dt_bias": first_steps},
    defaults=DEFAULTS,
    test_config={
        "attention_bias": True,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        **DELTA_TEST,
    },
)
