"""Mean and spread of every feature over all tokens.

Kept as (count, mean, M2) in fp64 and merged batch by batch (Chan, Golub & LeVeque 1983): sums of
squares in one pass lose everything where |mean| is far above the deviation, as in real o_proj and
down_proj inputs.
"""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch


class Moments:
    """Collects `count`, `mean`, `var` (unbiased) and `sumsq` = M2 + n mean^2 per feature [I]."""

    names = ("count", "mean", "var", "sumsq")

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | None = None
        self.M2: torch.Tensor | None = None

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take a batch [B, T, I] (of several tensors the last)."""
        X_NI = at_least_float32(tensors[-1]).flatten(0, -2)
        mean_I = X_NI.mean(0)
        M2_I = (X_NI - mean_I).square_().sum(0)
        self._add(len(X_NI), mean_I.double(), M2_I.double())

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""
        assert self.mean is not None and self.M2 is not None, "no batch was observed"
        count = ranks.total(self.count)
        mean = ranks.sum(self.mean * (self.count / count))
        self.M2 = ranks.sum(self.M2 + self.count * (self.mean - mean).square())
        self.count, self.mean = count, mean

    def _add(self, count: int, mean: "torch.Tensor", M2: "torch.Tensor") -> None:
        if self.mean is None or self.M2 is None:
            self.count, self.mean, self.M2 = count, mean, M2
            return
        total = self.count + count
        delta = mean - self.mean
        self.M2 = self.M2 + M2 + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return the statistics, [I] in fp64; `count` is [1]."""
        import torch

        assert self.mean is not None and self.M2 is not None, "no batch was observed"
        return {
            "count": torch.tensor([self.count]),
            "mean": self.mean,
            "var": self.M2 / max(self.count - 1, 1),
            "sumsq": self.M2 + self.count * self.mean.square(),
        }


STATISTIC = Statistic(INPUTS, Moments)
