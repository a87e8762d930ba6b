"""NVIDIA ModelOpt's aggregation for Minitron: the mean of |x| over a sequence, squared and summed.

absmean[j] = sum_sequences (mean_t |x[t, j]|)^2
"""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch


class AbsMean:
    """Collects `absmean` [I] in fp64; its root is the L2 norm over sequences."""

    names = ("absmean",)

    def __init__(self) -> None:
        self.sum: torch.Tensor | None = None

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take a batch [B, T, I]."""
        means_BI = at_least_float32(tensors[-1]).abs().mean(1).double()
        part = means_BI.square().sum(0)
        self.sum = part if self.sum is None else self.sum + part

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""
        assert self.sum is not None, "no batch was observed"
        self.sum = ranks.sum(self.sum)

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `absmean` [I]."""
        assert self.sum is not None, "no batch was observed"
        return {"absmean": self.sum}


STATISTIC = Statistic(INPUTS, AbsMean)
