"""Granite 4 with experts (H-Tiny, H-Small): in every layer, beside an FFN that all tokens take."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunecli.model.families import granitemoe, granitemoehybrid
from prunecli.model.families._base import OF_EXPERTS
from prunecli.model.families._kinds import sized

BASE = granitemoehybrid.FAMILY


def has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether there are experts, of which there are 8 where config.json says nothing."""
    count = config.get("num_local_experts", config.get("num_experts"))
    return count is None or count != 0


FAMILY = replace(
    BASE,
    name="granitemoehybrid-moe",
    variants=(),
    when=has_experts,
    tensors={
        **{
            name: tuple(axis.replace("ffn", "shared_ffn") for axis in axes)
            for name, axes in BASE.tensors.items()
        },
        **granitemoe.EXPERTS,
    },
    keys={"experts": "num_local_experts"},
    aliases={**BASE.aliases, **granitemoe.FAMILY.aliases},
    stored_names=granitemoe.STORED_NAMES,
    keeps_names=True,
    inputs=granitemoe.INPUTS,
    beside={**BASE.beside, "gate": BASE.inputs[2:3], "down": BASE.inputs[3:]},
    axes={**BASE.axes, **sized(shared_ffn=lambda get: get("shared_intermediate_size"))},
    experts=granitemoe.STACKED,
    fixed={**BASE.fixed, "ffn": OF_EXPERTS},
    defaults={**BASE.defaults, **granitemoe.DEFAULTS},
    test_config={
        **BASE.test_config,
        "num_local_experts": 4,
        "shared_intermediate_size": 64,
    },
)
