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
    scores the one with the lower index goes first. Lines are compared some at a time, long ones in
    pieces.
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
    limit = kth_lowest(lines, drop)
    mask = lines <= limit
    surplus = mask.sum(1) - drop  # of those that equal the limit, the last so many stay
    tied = surplus > 0
    if tied.any():
        limit, staying = limit[tied], surplus[tied][:, None]
        for some in reversed([*spans(lines.shape[1], PLACE * len(limit))]):
            equal = lines[:, some][tied] == limit
            place = equal.flip(1).cumsum(1).flip(1)  # counted from the end
            mask[:, some][tied] &= ~(equal & (place <= staying))
            staying = (staying - equal.sum(1, keepdim=True)).clamp(min=0)
    return mask


def kth_lowest(lines: "torch.Tensor", k: int) -> "torch.Tensor":
    """Return the k-th lowest number of each line [lines, n], counted from 1, as [lines, 1]."""
    import numpy as np
    import torch

    if lines.device.type != "cpu":
        return lines.kthvalue(k, dim=1, keepdim=True).values
    # the same numbers as torch's, in a sixth of the time
    return torch.from_numpy(np.partition(lines.numpy(), k - 1, axis=1)[:, k - 1 : k].copy())
