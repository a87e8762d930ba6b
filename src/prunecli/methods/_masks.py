"""Which weights go, given their scores: exact counts, ties by position, so that runs repeat."""

from typing import TYPE_CHECKING

from prunecli.methods._base import Pattern

if TYPE_CHECKING:
    import torch


def drop_mask(score_OI: "torch.Tensor", pattern: Pattern, scope: str) -> "torch.Tensor":
    """Return a bool mask [O, I], true where a weight goes.

    N:M drops the M - N lowest of every M consecutive inputs of a row. Otherwise floor(ratio * n)
    of the n weights of each row (`scope="row"`) or of the matrix (`scope="matrix"`). Of equal
    scores the one with the lower index goes first.
    """
    rows, columns = score_OI.shape
    if pattern.group:
        flat, drop = score_OI.reshape(-1, pattern.group), pattern.group - pattern.keep
    else:
        flat = score_OI.reshape(1, -1) if scope == "matrix" else score_OI
        drop = int(flat.shape[1] * pattern.ratio)
    lowest = flat.sort(dim=1, stable=True).indices[:, :drop]
    mask = flat.isnan().scatter_(1, lowest, True)
    return mask.reshape(rows, columns)
