"""Granite 3 with experts in every layer, stored together; its multipliers are those of Granite."""

from collections.abc import Mapping

from prunecli.model.families import granite, llama
from prunecli.model.families._base import OF_EXPERTS, Axes, Experts, Family

BLOCK = llama.LAYER + "block_sparse_moe."
EXPERTS: Mapping[str, Axes] = {
    BLOCK + "router.weight": ("experts", "hidden"),
    BLOCK + "experts.{e}.gate_proj.weight": ("ffn", "hidden"),
    BLOCK + "experts.{e}.up_proj.weight": ("ffn", "hidden"),
    BLOCK + "experts.{e}.down_proj.weight": ("hidden", "ffn"),
}
STORED_NAMES = (("block_sparse_moe.router.layer.", "block_sparse_moe.router."),)
STACKED = Experts(
    "block_sparse_moe.experts",
    stacks=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    stacked=True,
)
INPUTS = (
    *llama.INPUTS[:2],
    ("block_sparse_moe.experts.{e}.gate_proj", "block_sparse_moe.experts.{e}.up_proj"),
    ("block_sparse_moe.experts.{e}.down_proj",),
)
DEFAULTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001}


FAMILY = Family(
    name="granitemoe",
    model_types=("granitemoe",),
    classes="GraniteMoe",
    tensors={
        **llama.ROOT,
        **llama.ATTENTION_LINEARS,
        **EXPERTS,
        **llama.NORMS,
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    keys={"experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    stored_names=STORED_NAMES,
    keeps_names=True,
    inputs=INPUTS,
    experts=STACKED,
    fixed={"ffn": OF_EXPERTS},
    defaults={**granite.FAMILY.defaults, **DEFAULTS},
    test_config={
        **granite.FAMILY.test_config,
        "attention_bias": True,
        "num_local_experts": 4,
    },
)
