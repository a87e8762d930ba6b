"""The variance that FLAP's official code computes, for `--compat official`.

Its recursion means to use the old and the new mean (Welford), but both names hold one tensor that
is updated in place, and the first sequence adds nothing. With mu_s the mean over the means of
the first s of n sequences:

    F[j] = 1 / (n - 1) * sum_{s=2..n} (s - 1) / s * sum_t (x[s, t, j] - mu_s[j])^2
"""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32

if TYPE_CHECKING:
    import torch


class Fluctuation:
    """Collects `fluctuation` [I]; the order of the sequences matters."""

    names = ("fluctuation",)

    def __init__(self) -> None:
        self.sequences = 0
        self.mean: torch.Tensor | None = None
        self.sum: torch.Tensor | None = None

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take the sequences of a batch [B, T, I] one after the other."""
        import torch

        for X_TI in at_least_float32(tensors[-1]):
            mean_I = X_TI.mean(0).double()
            self.sequences += 1
            s = self.sequences
            if self.mean is None or self.sum is None:
                self.mean, self.sum = mean_I, torch.zeros_like(mean_I)
                continue
            self.mean = ((s - 1) * self.mean + mean_I) / s
            spread_I = (X_TI - self.mean.to(X_TI.dtype)).square().sum(0)
            self.sum += (s - 1) / s * spread_I

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `fluctuation` [I] in fp64; of a single sequence it is zero, as official."""
        assert self.sum is not None, "no batch was observed"
        return {"fluctuation": self.sum / max(self.sequences - 1, 1)}


STATISTIC = Statistic(INPUTS, Fluctuation, ordered=True)
