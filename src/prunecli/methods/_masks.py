"""Which weights go, given their scores: exact counts, ties by position, so that runs repeat."""

from typing import TYPE_CHECKING

from prunecli.files.tensorfile import spans
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch

PLACE = 8  # bytes of a number's place in its line


def drop_mask(score_OI: "torch.Tensor", pattern: SparsityPattern, scope: str) -> "torch.Tensor":
    """Return a bool mask [O, I], true where a weight goes.

    N:M drops the M - N lowest of every M consecutive inputs of a row. Otherwise floor(ratio * n)
    of the n weights of each row (`scope="row"`) or of the matrix (`scope="matrix"`). Of equal
    scores the one with the lower index goes first. Lines are compared some at a time.
    """
    import torch

    if pattern.group:
        lines, drop = score_OI.reshape(-1, pattern.group), pattern.group - pattern.keep
    else:
        lines = score_OI.reshape(1, -1) if scope == "matrix" else score_OI
        drop = pattern.of(lines.shape[1])
    parts = [_lowest(lines[some], drop) for some in spans(len(lines), PLACE * lines.shape[1])]
    return torch.cat(parts).view(score_OI.shape)


def _lowest(lines: "torch.Tensor", drop: int) -> "torch.Tensor":
    """Return a bool mask that is true for the `drop` lowest of each line."""
    if drop == 0:
        return lines.isnan()
    # the drop-th lowest of each line, and of those that equal it only as many as still fit
    limit = lines.kthvalue(drop, dim=1, keepdim=True).values
    below, equal = lines < limit, lines == limit
    room = drop - below.sum(1, keepdim=True)
    return below | (equal & (equal.cumsum(1) <= room))
