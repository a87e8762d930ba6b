"""Mixtral: Mistral with experts in every layer, which have Llama's first names of linears."""

from prunecli.model.families import llama, mistral
from prunecli.model.families._base import OF_EXPERTS, Experts, Family

BLOCK = llama.LAYER + "block_sparse_moe."
EXPERT = BLOCK + "experts.{e}."
FAMILY = Family(
    name="mixtral",
    model_types=("mixtral",),
    classes="Mixtral",
    tensors={
        **llama.ROOT,
        **llama.ATTENTION_LINEARS,
        BLOCK + "gate.weight": ("experts", "hidden"),
        EXPERT + "w1.weight": ("ffn", "hidden"),
        EXPERT + "w3.weight": ("ffn", "hidden"),
        EXPERT + "w2.weight": ("hidden", "ffn"),
        **llama.NORMS,
    },
    keys={"experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    inputs=(
        *llama.INPUTS[:2],
        ("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"),
        ("block_sparse_moe.experts.{e}.w2",),
    ),
    experts=Experts(
        "block_sparse_moe.experts",
        gate="w1",
        up="w3",
        down="w2",
        moved=(("mlp", "block_sparse_moe"),),
    ),
    fixed={"ffn": OF_EXPERTS},
    defaults={
        **mistral.FAMILY.defaults,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    test_config={"num_local_experts": 4},
)
