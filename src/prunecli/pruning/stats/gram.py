"""X^T X of a linear's inputs: the Hessian of its squared error, up to a factor."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch

# rows of the sum that are computed at once: as few products as possible below the diagonal, but
# each large enough to be as fast as one over all rows
STRIPES, WIDTH = 8, 128


class Gram:
    """Collects `gram` = sum over tokens of x x^T, [I, I] in fp32 (fp64 for fp64 inputs).

    The sum is symmetric: what lies below the diagonal is copied once, from above.
    """

    names = ("gram",)

    def __init__(self) -> None:
        self.sum_II: torch.Tensor | None = None

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take a batch [B, T, I] (of several tensors the last)."""
        X_NI = at_least_float32(tensors[-1]).flatten(0, -2)
        if self.sum_II is None:
            self.sum_II = X_NI.new_zeros(X_NI.shape[1], X_NI.shape[1])
        for rows in _stripes(len(self.sum_II)):
            self.sum_II[rows, rows.start :].addmm_(X_NI[:, rows].T, X_NI[:, rows.start :])

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""
        assert self.sum_II is not None, "no batch was observed"
        self.sum_II = ranks.sum(self.sum_II)

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `gram` [I, I]."""
        assert self.sum_II is not None, "no batch was observed"
        for rows in _stripes(len(self.sum_II)):
            self.sum_II[rows.stop :, rows] = self.sum_II[rows, rows.stop :].T
        return {"gram": self.sum_II}


def _stripes(inputs: int) -> Iterator[slice]:
    """Yield slices of rows, from the first to the last."""
    height = max(WIDTH, -(-inputs // STRIPES))
    for start in range(0, inputs, height):
        yield slice(start, min(start + height, inputs))


STATISTIC = Statistic(INPUTS, Gram)
