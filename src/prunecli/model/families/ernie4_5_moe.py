"""ERNIE 4.5 with experts between two layers, and one or two that all tokens take."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import ernie4_5, llama, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Experts, Family
from prunecli.model.families._kinds import sized

START, END = "moe_layer_start_index", "moe_layer_end_index"
STATICS = "moe_statics.e_score_correction_bias"


def kinds_of(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
    """Return the kind of layer `i`: from the first to the last of two numbers they are sparse."""
    first, last = config.get(START), config.get(END)
    begun = i >= (1 if first is None else first)
    return ("sparse" if begun and (last in (None, -1) or i <= last) else "dense",)


def relayered(config: Mapping[str, Any], kept: list[int]) -> Mapping[str, Any]:
    """Return these two numbers of the kept layers."""
    sparse = [n for n, i in enumerate(kept) if kinds_of(config, i) == ("sparse",)]
    return {START: sparse[0], END: sparse[-1]} if sparse else {START: len(kept), END: -1}


FAMILY = Family(
    name="ernie4-5-moe",
    model_types=("ernie4_5_moe",),
    classes="Ernie4_5_Moe",
    tensors={
        **qwen3_moe.TENSORS,
        **qwen3_moe.DENSE,
        llama.MLP + STATICS: ("one", "experts"),
    },
    optional={"moe_num_shared_experts": qwen3_moe.shared_expert("shared_experts")},
    flags={"moe_num_shared_experts": True},
    keys={
        "ffn": "moe_intermediate_size",
        "experts": "moe_num_experts",
        "experts_per_token": "moe_k",
    },
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    left_out=("model.mtp_",),
    only={"moe_layer_interval": (1,), "use_bias": (False,)},
    kinds={
        **qwen3_moe.KINDS,
        "sparse": (*qwen3_moe.KINDS["sparse"], "mlp.moe_statics", "mlp.shared_experts"),
    },
    kinds_of=kinds_of,
    relayered=relayered,
    inputs=qwen3_moe.INPUTS,
    beside=qwen3_moe.beside("mlp.shared_experts."),
    axes=sized(
        dense_ffn=lambda get: get("intermediate_size"),
        shared_ffn=lambda get: get("moe_num_shared_experts") * get("moe_intermediate_size"),
    ),
    experts=Experts("mlp.experts", moved=(("mlp.gate.moe_statics", "mlp.moe_statics"),)),
    fixed={"ffn": OF_EXPERTS},
    initial={STATICS: 0.0},
    defaults={
        **{key: value for key, value in ernie4_5.FAMILY.defaults.items() if key != "head_dim"},
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_num_shared_experts": 2,
        START: 1,
        "router_aux_loss_coef": 0.001,
    },
    test_config={
        "intermediate_size": 112,
        "moe_intermediate_size": 80,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
    },
)
