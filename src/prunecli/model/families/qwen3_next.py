"""Qwen 3 Next: the mixers of Qwen 3.5 with experts, one of which all tokens take."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import gemma, llama, qwen3_5, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Experts, Family
from prunecli.model.families._kinds import (
    DELTA_AXES,
    NEEDED,
    delta_net,
    delta_state,
    every_fourth,
    feeds,
    of_types,
    sized,
    still_dense,
)

mixes = of_types(every_fourth)


def kinds_of(config: Mapping[str, Any], i: int) -> tuple[str, ...]:
    """Return the kinds of layer `i`: of its mixer and of its FFN."""
    return (*mixes(config, i), feeds(config, i))


SPARSE = (*qwen3_moe.KINDS["sparse"], "mlp.shared_expert", "mlp.shared_expert_gate")
FAMILY = Family(
    name="qwen3-next",
    model_types=("qwen3_next",),
    classes="Qwen3Next",
    tensors={
        **qwen3_moe.TENSORS,
        **qwen3_5.ATTENTION,
        **delta_net(qwen3_5.MIXER, fused=True),
        **qwen3_moe.DENSE,
        **qwen3_moe.shared_expert("shared_expert"),
        llama.MLP + "shared_expert_gate.weight": ("one", "hidden"),
    },
    biases={"attention_bias": qwen3_5.BIASES},
    keys={"ffn": "moe_intermediate_size"},
    aliases={"num_local_experts": "num_experts"},
    left_out=("mtp.",),
    kinds={**qwen3_5.KINDS, **qwen3_moe.KINDS, "sparse": SPARSE},
    kinds_of=kinds_of,
    needed=NEEDED,
    relayered=still_dense,
    inputs=qwen3_moe.INPUTS,
    beside={
        "q": (("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"),),
        "o": (("linear_attn.out_proj",),),
        **qwen3_moe.beside("mlp.shared_expert."),
    },
    axes={
        **DELTA_AXES,
        **sized(
            dense_ffn=lambda get: get("intermediate_size"),
            shared_ffn=lambda get: get("shared_expert_intermediate_size"),
        ),
    },
    recurrences={"linear_attention": delta_state},
    experts=Experts("mlp.experts"),
    fixed={"ffn": OF_EXPERTS},
    layer_lists={"layer_types": every_fourth},
    norm_weight_offset=gemma.FAMILY.norm_weight_offset,
    initial=qwen3_5.INITIAL,
    defaults={
        **qwen3_5.DEFAULTS,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.001,
    },
    test_config={
        **qwen3_5.TEST,
        "mlp_only_layers": [1],
        "intermediate_size": 112,
        "moe_intermediate_size": 80,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
)
