"""OLMoE: experts in every layer, and norms over all queries and all keys."""

from prunecli.model.families import llama, qwen3_moe
from prunecli.model.families._base import HEAD_SIZE, OF_EXPERTS, Experts, Family

FAMILY = Family(
    name="olmoe",
    model_types=("olmoe",),
    classes="Olmoe",
    tensors={
        **qwen3_moe.TENSORS,
        llama.ATTENTION + "q_norm.weight": ("heads",),
        llama.ATTENTION + "k_norm.weight": ("kv_heads",),
    },
    aliases={"num_local_experts": "num_experts"},
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=qwen3_moe.INPUTS,
    experts=Experts("mlp.experts"),
    fixed={"ffn": OF_EXPERTS, "heads": HEAD_SIZE, "hidden": HEAD_SIZE},
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.01,
    },
    test_config={"num_experts": 4, "num_experts_per_tok": 2},
)
