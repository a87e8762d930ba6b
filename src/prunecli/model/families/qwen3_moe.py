"""Qwen 3 with experts in every layer, of which a token takes a few, and none that all take."""

from prunecli.model.families import llama, qwen3
from prunecli.model.families._base import OF_EXPERTS, Experts, Family

EXPERT = llama.MLP + "experts.{e}."
# of the model types whose files name experts alike
TENSORS = {
    **llama.ROOT,
    **{name: axes for name, axes in llama.LINEARS.items() if llama.ATTENTION in name},
    llama.MLP + "gate.weight": ("experts", "hidden"),
    EXPERT + "gate_proj.weight": ("ffn", "hidden"),
    EXPERT + "up_proj.weight": ("ffn", "hidden"),
    EXPERT + "down_proj.weight": ("hidden", "ffn"),
    **llama.NORMS,
}


INPUTS = (
    *llama.INPUTS[:2],
    ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
    ("mlp.experts.{e}.down_proj",),
)


FAMILY = Family(
    name="qwen3-moe",
    model_types=("qwen3_moe",),
    classes="Qwen3Moe",
    tensors={
        **TENSORS,
        llama.ATTENTION + "q_norm.weight": ("head_dim",),
        llama.ATTENTION + "k_norm.weight": ("head_dim",),
    },
    keys={"ffn": "moe_intermediate_size"},
    aliases={"num_local_experts": "num_experts"},
    only={"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    biases=qwen3.FAMILY.biases,
    inputs=INPUTS,
    experts=Experts("mlp.experts"),
    fixed={"ffn": OF_EXPERTS},
    defaults={
        **{key: value for key, value in qwen3.FAMILY.defaults.items() if key != "head_dim"},
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
    },
    test_config={"moe_intermediate_size": 80, "num_experts": 4, "num_experts_per_tok": 2},
)
