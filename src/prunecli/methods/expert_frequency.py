"""Expert frequency: experts that are sent few tokens go (Muzio et al. 2024, arXiv 2404.05089).

    S[j] = number of tokens that the router sends to expert j

A soft count, of the router's probabilities, is the other variant there; this is the hard one.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `experts` [E]."""
    return {"experts": layer.stats["experts.tokens"]}


METHOD = Method(
    name="expert-frequency",
    title="Expert frequency",
    reference="arXiv 2404.05089",
    unit="channels",
    granularity="experts",
    axes=("experts",),
    needs=(RequiredStatistic("routed", ("experts",)),),
    score=score,
)
