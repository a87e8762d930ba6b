"""Qwen 3.5 with experts in every layer, one of which all tokens take."""

from prunecli.model.families import gemma, llama, qwen3_5, qwen3_moe, qwen3_next
from prunecli.model.families._base import OF_EXPERTS, Experts, Family
from prunecli.model.families._kinds import (
    DELTA_AXES,
    NEEDED,
    delta_net,
    delta_state,
    every_fourth,
    of_types,
    sized,
)

FAMILY = Family(
    name="qwen3-5-moe",
    model_types=("qwen3_5_moe_text",),
    classes="Qwen3_5Moe",
    tensors={
        **qwen3_moe.TENSORS,
        **qwen3_5.ATTENTION,
        **delta_net(qwen3_5.MIXER),
        **qwen3_moe.shared_expert("shared_expert"),
        llama.MLP + "shared_expert_gate.weight": ("one", "hidden"),
    },
    biases={"attention_bias": qwen3_5.BIASES},
    keys={"ffn": "moe_intermediate_size"},
    aliases={"num_local_experts": "num_experts"},
    left_out=qwen3_5.FAMILY.left_out,
    kinds=qwen3_5.KINDS,
    kinds_of=of_types(every_fourth),
    needed=NEEDED,
    inputs=qwen3_moe.INPUTS,
    beside={
        **qwen3_5.FAMILY.beside,
        "gate": (("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),),
        "down": (("mlp.shared_expert.down_proj",),),
    },
    axes={
        **DELTA_AXES,
        **sized(shared_ffn=lambda get: get("shared_expert_intermediate_size")),
    },
    recurrences={"linear_attention": delta_state},
    experts=Experts("mlp.experts", stacks=("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    fixed={"ffn": OF_EXPERTS},
    layer_lists={"layer_types": every_fourth},
    norm_weight_offset=gemma.FAMILY.norm_weight_offset,
    initial=qwen3_5.INITIAL,
    defaults={
        **{
            key: value
            for key, value in qwen3_next.FAMILY.defaults.items()
            if key != "norm_topk_prob"
        },
        "num_experts": 256,
        "num_experts_per_tok": 8,
    },
    test_config={
        **qwen3_5.TEST,
        "moe_intermediate_size": 80,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
)
