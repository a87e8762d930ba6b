"""Wanda: weight magnitude times the L2 norm of its input feature (Sun et al. 2024, 2306.11695).

    S[i, j] = |W[i, j]| * ||X[:, j]||_2        compared within each output row i

A factor common to all norms changes nothing. Sequential: the inputs X of a layer come out of
layers that are pruned already.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, RequiredStatistic
from prunecli.methods._masks import drop_mask
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch


def prepare(stats: "dict[str, torch.Tensor]", options: dict[str, Any]) -> "torch.Tensor":
    """Return the norm of every input feature [I]."""
    return stats["feature_norm"].sqrt().float()


def sparsify(
    weight_OI: "torch.Tensor",
    norm_I: "torch.Tensor",
    pattern: SparsityPattern,
    options: dict[str, Any],
) -> "torch.Tensor":
    """Return `weight_OI` with the lowest scores of every row set to zero."""
    return weight_OI.masked_fill(drop_mask(weight_OI.abs().mul_(norm_I), pattern, "row"), 0)


METHOD = Method(
    name="wanda",
    title="Wanda",
    reference="arXiv 2306.11695",
    unit="weights",
    granularity="weights",
    needs=(RequiredStatistic("feature_norm", ("q", "o", "gate", "down")),),
    sequential=True,
    recipes={
        "paper": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 8192},
        "official": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 8192},
    },
    prepare=prepare,
    sparsify=sparsify,
)
