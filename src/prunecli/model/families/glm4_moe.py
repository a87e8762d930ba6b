"""GLM 4.5, 4.6 and 4.7: experts in all but the first layers, and one that all tokens take."""

from prunecli.model.families import llama, qwen3, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Experts, Family
from prunecli.model.families._kinds import FIRST, led_by, sized, still_first

SPARSE = (*qwen3_moe.KINDS["sparse"], "mlp.shared_experts")
FAMILY = Family(
    name="glm4-moe",
    model_types=("glm4_moe",),
    classes="Glm4Moe",
    tensors={
        **qwen3_moe.TENSORS,
        **qwen3_moe.DENSE,
        **qwen3_moe.shared_expert("shared_experts"),
        llama.MLP + "gate.e_score_correction_bias": ("experts",),
    },
    biases={"attention_bias": llama.QKV_BIAS},
    optional={"use_qk_norm": qwen3.QK_NORMS},
    keys={"ffn": "moe_intermediate_size", "experts": "n_routed_experts"},
    aliases={"num_local_experts": "n_routed_experts"},
    left_out=("model.layers.{layers}.",),
    kinds={**qwen3_moe.KINDS, "sparse": SPARSE},
    kinds_of=led_by(1),
    relayered=still_first(led_by(1)),
    inputs=qwen3_moe.INPUTS,
    beside=qwen3_moe.beside("mlp.shared_experts."),
    axes=sized(
        dense_ffn=lambda get: get("intermediate_size"),
        shared_ffn=lambda get: get("n_shared_experts") * get("moe_intermediate_size"),
    ),
    experts=Experts("mlp.experts", groups=("n_group", "topk_group")),
    fixed={"ffn": OF_EXPERTS},
    initial={"e_score_correction_bias": 0.0},
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "bos_token_id": None,
        "eos_token_id": None,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "topk_group": 1,
        FIRST: 1,
    },
    test_config={
        "attention_bias": True,
        "use_qk_norm": True,
        "intermediate_size": 112,
        "moe_intermediate_size": 80,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 2.5,
    },
)
