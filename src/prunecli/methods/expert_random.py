"""Random experts: what a method for experts must beat.

S[j] uniform in [0, 1), drawn for every layer anew
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, Option

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `experts` [E]."""
    import torch

    # the same for a layer whatever was drawn for those before it
    draw = torch.Generator().manual_seed(options["draw"] * (1 << 20) + layer.index)
    return {"experts": torch.rand(layer.experts, generator=draw, dtype=torch.float64)}


METHOD = Method(
    name="expert-random",
    title="Random experts",
    reference="a baseline",
    unit="channels",
    granularity="experts",
    axes=("experts",),
    options=(Option("draw", int, 0, "which of the random choices", metavar="N"),),
    score=score,
)
