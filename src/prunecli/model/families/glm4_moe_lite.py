"""GLM 4.7 Flash: latent attention as in DeepSeek V3, and a list of dense and sparse layers."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import deepseek_v3, glm4_moe
from prunecli.model.families._base import OF_EXPERTS, Family
from prunecli.model.families._kinds import FIRST, of_types

TYPES = "mlp_layer_types"


def dense_first(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`: the first is dense."""
    return "sparse" if i else "dense"


feeds = of_types(dense_first, TYPES)
FAMILY = Family(
    name="glm4-moe-lite",
    model_types=("glm4_moe_lite",),
    classes="Glm4MoeLite",
    tensors=deepseek_v3.TENSORS,
    biases=deepseek_v3.FAMILY.biases,
    keys=deepseek_v3.FAMILY.keys,
    aliases=deepseek_v3.FAMILY.aliases,
    left_out=glm4_moe.FAMILY.left_out,
    kinds=deepseek_v3.KINDS,
    kinds_of=lambda config, i: (*deepseek_v3.squeezed(config, i), *feeds(config, i)),
    inputs=deepseek_v3.INPUTS,
    beside=deepseek_v3.BESIDE,
    axes=deepseek_v3.AXES,
    by_head=deepseek_v3.BY_HEAD,
    experts=deepseek_v3.FAMILY.experts,
    fixed={"ffn": OF_EXPERTS},
    initial=glm4_moe.FAMILY.initial,
    layer_lists={TYPES: dense_first},
    defaults={
        **{key: value for key, value in deepseek_v3.FAMILY.defaults.items() if key != FIRST},
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 20,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
    },
    test_config={
        **deepseek_v3.TEST,
        "q_lora_rank": None,
        "n_routed_experts": 4,
    },
)
