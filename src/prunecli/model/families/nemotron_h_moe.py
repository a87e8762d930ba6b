"""Nemotron 3 (Nano): layers with experts among those of Nemotron-H; no FFN has a gate."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunecli.model.families import nemotron_h
from prunecli.model.families._base import OF_EXPERTS, Axes, Experts
from prunecli.model.families._kinds import NEEDED, sized

BASE, MIXER = nemotron_h.FAMILY, nemotron_h.MIXER
SHARED = MIXER + "shared_experts."
EXPERTS: Mapping[str, Axes] = {
    MIXER + "gate.weight": ("experts", "hidden"),
    MIXER + "gate.e_score_correction_bias": ("experts",),
    MIXER + "experts.{e}.up_proj.weight": ("ffn", "hidden"),
    MIXER + "experts.{e}.down_proj.weight": ("hidden", "ffn"),
    SHARED + "up_proj.weight": ("shared_ffn", "hidden"),
    SHARED + "down_proj.weight": ("hidden", "shared_ffn"),
}


def has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether a layer has experts, as a list or a pattern in letters tells."""
    for key in ("layers_block_type", "layer_types"):
        if isinstance(config.get(key), list):
            return "moe" in config[key]
    return "E" in str(config.get(nemotron_h.PATTERN))


def of_others(tables: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return tensors of layers without experts, whose FFN has another width."""
    return {
        name: tuple("dense_ffn" if axis == "ffn" else axis for axis in axes)
        for name, axes in tables.items()
    }


FAMILY = replace(
    BASE,
    name="nemotron-h-moe",
    variants=(),
    when=has_experts,
    tensors={**of_others(BASE.tensors), **EXPERTS},
    biases={
        **BASE.biases,
        "mlp_bias": {
            **of_others(BASE.biases["mlp_bias"]),
            SHARED + "up_proj.bias": ("shared_ffn",),
            SHARED + "down_proj.bias": ("hidden",),
        },
    },
    keys={**BASE.keys, "ffn": "moe_intermediate_size", "experts": "n_routed_experts"},
    aliases={**BASE.aliases, "num_local_experts": "n_routed_experts"},
    only={"moe_latent_size": (None,)},
    kinds={**BASE.kinds, "moe": ("mixer.gate", "mixer.experts", "mixer.shared_experts")},
    needed={**NEEDED, "moe": "without experts it would be a model of another family"},
    inputs=(
        *BASE.inputs[:2],
        ("mixer.experts.{e}.up_proj",),
        ("mixer.experts.{e}.down_proj",),
    ),
    beside={
        **BASE.beside,
        "gate": (BASE.inputs[2], ("mixer.shared_experts.up_proj",)),
        "down": (BASE.inputs[3], ("mixer.shared_experts.down_proj",)),
    },
    axes={
        **BASE.axes,
        **sized(
            dense_ffn=lambda get: get("intermediate_size"),
            shared_ffn=lambda get: get("moe_shared_expert_intermediate_size"),
        ),
    },
    experts=Experts("mixer.experts", gate=None, groups=("n_group", "topk_group")),
    fixed={**BASE.fixed, "ffn": OF_EXPERTS},
    initial={**BASE.initial, "e_score_correction_bias": 0.0},
    defaults={
        **BASE.defaults,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    test_config={
        **BASE.test_config,
        nemotron_h.PATTERN: "E*E*",
        "moe_intermediate_size": 80,
        "moe_shared_expert_intermediate_size": 64,
        "n_routed_experts": 4,
    },
)
