"""NVIDIA ModelOpt's aggregation for Minitron: the mean of |x| over a sequence, squared and summed.

absmean[j] = sum_sequences (mean_t |x[t, j]|)^2
"""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32

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
        self._add(means_BI.square().sum(0))

    def merge(self, other: "AbsMean") -> None:
        """Take in what another collector has seen."""
        if other.sum is not None:
            self._add(other.sum)

    def _add(self, part: "torch.Tensor") -> None:
        self.sum = part if self.sum is None else self.sum + part

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `absmean` [I]."""
        assert self.sum is not None, "no batch was observed"
        return {"absmean": self.sum}


STATISTIC = Statistic(INPUTS, AbsMean)
