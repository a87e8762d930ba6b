"""Qwen 3 with experts, of which a token takes a few, in every layer or in all but some."""

from collections.abc import Mapping

from prunecli.model.families import llama, qwen3
from prunecli.model.families._base import OF_EXPERTS, Axes, Experts, Family
from prunecli.model.families._kinds import feeds, sized, still_dense

EXPERT = llama.MLP + "experts.{e}."
# of the model types whose files name experts alike
TENSORS = {
    **llama.ROOT,
    **llama.ATTENTION_LINEARS,
    llama.MLP + "gate.weight": ("experts", "hidden"),
    EXPERT + "gate_proj.weight": ("ffn", "hidden"),
    EXPERT + "up_proj.weight": ("ffn", "hidden"),
    EXPERT + "down_proj.weight": ("hidden", "ffn"),
    **llama.NORMS,
}


# of layers without experts
DENSE: Mapping[str, Axes] = {
    llama.MLP + "gate_proj.weight": ("dense_ffn", "hidden"),
    llama.MLP + "up_proj.weight": ("dense_ffn", "hidden"),
    llama.MLP + "down_proj.weight": ("hidden", "dense_ffn"),
}
KINDS = {
    "dense": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "sparse": ("mlp.gate", "mlp.experts"),
}


def shared_expert(name: str) -> Mapping[str, Axes]:
    """Return the tensors of an expert that all tokens take."""
    module = f"{llama.MLP}{name}."
    return {
        module + "gate_proj.weight": ("shared_ffn", "hidden"),
        module + "up_proj.weight": ("shared_ffn", "hidden"),
        module + "down_proj.weight": ("hidden", "shared_ffn"),
    }


def beside(*modules: str) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Return the inputs of dense layers and of experts that all take, by the point."""
    names = ("mlp.", *modules)
    return {
        "gate": tuple((f"{name}gate_proj", f"{name}up_proj") for name in names),
        "down": tuple((f"{name}down_proj",) for name in names),
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
        **DENSE,
        **qwen3.QK_NORMS,
    },
    keys={"ffn": "moe_intermediate_size"},
    aliases={"num_local_experts": "num_experts"},
    kinds=KINDS,
    kinds_of=lambda config, i: (feeds(config, i),),
    relayered=still_dense,
    biases=qwen3.FAMILY.biases,
    inputs=INPUTS,
    beside=beside(),
    axes=sized(dense_ffn=lambda get: get("intermediate_size")),
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
