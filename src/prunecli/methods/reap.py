"""REAP: experts that add little to what their tokens become go (Lasby et al. 2025, 2510.13999).

    S[j] = mean over the tokens x sent to expert j of  g_j(x) * ||f_j(x)||_2

with g the router's weight of the expert for a token, as its output is multiplied by it, and f the
expert's output. The lowest of every layer go, with their rows of the router; the others stay as
they are, and a token is sent to as many as before. An expert without tokens has a score of 0.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `experts` [E]."""
    tokens_E, added_E = layer.stats["experts.tokens"], layer.stats["experts.added"]
    return {"experts": added_E / tokens_E.clamp(min=1)}


METHOD = Method(
    name="reap",
    title="REAP",
    reference="arXiv 2510.13999",
    unit="channels",
    granularity="experts",
    axes=("experts",),
    needs=(RequiredStatistic("routed", ("experts",)),),
    score=score,
)
