"""Which weights go, given their scores: exact counts, ties by position, so that runs repeat."""

from typing import TYPE_CHECKING

from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch


def drop_mask(score_OI: "torch.Tensor", pattern: SparsityPattern, scope: str) -> "torch.Tensor":
    """Return a bool mask [O, I], true where a weight goes.

    N:M drops the M - N lowest of every M consecutive inputs of a row. Otherwise floor(ratio * n)
    of the n weights of each row (`scope="row"`) or of the matrix (`scope="matrix"`). Of equal
    scores the one with the lower index goes first.
    """
    if pattern.group:
        flat, drop = score_OI.reshape(-1, pattern.group), pattern.group - pattern.keep
    else:
        flat = score_OI.reshape(1, -1) if scope == "matrix" else score_OI
        drop = pattern.of(flat.shape[1])
    if drop == 0:
        return flat.isnan().view(score_OI.shape)
    # the drop-th lowest of each line, and of those that equal it only as many as still fit
    limit = flat.kthvalue(drop, dim=1, keepdim=True).values
    below, equal = flat < limit, flat == limit
    room = drop - below.sum(1, keepdim=True)
    return (below | (equal & (equal.cumsum(1) <= room))).view(score_OI.shape)
