"""Magnitude: the smallest weights go (Han et al. 2015, arXiv 1506.02626).

    S[i, j] = |W[i, j]|        compared within the whole matrix

`--compat official` is the rule of locuslab/wanda: everything at or below the weight at rank
floor(n * ratio), which in bf16 overshoots by all the weights that tie with it.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, Option, Setting
from prunecli.methods._masks import drop_mask, kth_lowest
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch


def sparsify(
    weight_OI: "torch.Tensor", factor: None, pattern: SparsityPattern, options: dict[str, Any]
) -> "torch.Tensor":
    """Return `weight_OI` with the smallest magnitudes set to zero."""
    if options["compat"] and not pattern.group:
        score_OI = weight_OI.abs()
        rank = int(score_OI.numel() * pattern.ratio)
        limit = kth_lowest(score_OI.reshape(1, -1), rank + 1)
        return weight_OI.masked_fill(score_OI <= limit, 0)
    return weight_OI.masked_fill(drop_mask(weight_OI.abs(), pattern, options["scope"]), 0)


def _no_scope(beside: Setting) -> str:
    if beside.grouped:
        return "an N:M pattern compares the weights of a group"
    return "the official code compares within the whole matrix" if beside.compat else ""


METHOD = Method(
    name="magnitude",
    title="Magnitude",
    reference="arXiv 1506.02626",
    unit="weights",
    granularity="weights",
    options=(
        Option(
            "scope",
            str,
            "matrix",
            "compare weights within the whole matrix, or within one output row",
            choices=("matrix", "row"),
            stage="prune",
            idle=_no_scope,
        ),
    ),
    quirks=lambda beside: "an N:M pattern has no threshold" if beside.grouped else "",
    sparsify=sparsify,
)
