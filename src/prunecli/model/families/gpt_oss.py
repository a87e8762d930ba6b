"""gpt-oss: sinks, windows in every other layer, and experts with biases, stored together.

Its experts clamp what they read, and add one to what gates: transformers' class says how.
"""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import llama, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Axes, Experts, Family


def every_other(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`: the first has a window, the second full attention."""
    return "full_attention" if i % 2 else "sliding_attention"


EXPERT = llama.MLP + "experts.{e}."
EXPERTS: Mapping[str, Axes] = {
    EXPERT + "gate_proj.weight": ("ffn", "hidden"),
    EXPERT + "gate_proj.bias": ("ffn",),
    EXPERT + "up_proj.weight": ("ffn", "hidden"),
    EXPERT + "up_proj.bias": ("ffn",),
    EXPERT + "down_proj.weight": ("hidden", "ffn"),
    EXPERT + "down_proj.bias": ("hidden",),
}


FAMILY = Family(
    name="gpt-oss",
    model_types=("gpt_oss",),
    classes="GptOss",
    tensors={
        **llama.ROOT,
        **llama.ATTENTION_LINEARS,
        llama.ATTENTION + "sinks": ("each_head",),
        llama.MLP + "router.weight": ("experts", "hidden"),
        llama.MLP + "router.bias": ("experts",),
        **EXPERTS,
        **llama.NORMS,
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    flags={"attention_bias": True},
    keys={"experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    inputs=qwen3_moe.INPUTS,
    experts=Experts(
        "mlp.experts",
        stacks=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        stacked=True,
        biased=True,
        interleaved=True,
        transposed=True,
    ),
    fixed={"ffn": OF_EXPERTS},
    initial={"sinks": 0.0},
    layer_lists={"layer_types": every_other},
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "router_aux_loss_coef": 0.001,
    },
    test_config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
)
