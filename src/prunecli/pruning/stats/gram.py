"""X^T X of a linear's inputs: the Hessian of its squared error, up to a factor."""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32

if TYPE_CHECKING:
    import torch


class Gram:
    """Collects `gram` = sum over tokens of x x^T, [I, I] in fp32 (fp64 for fp64 inputs)."""

    names = ("gram",)

    def __init__(self) -> None:
        self.sum_II: torch.Tensor | None = None

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take a batch [B, T, I] (of several tensors the last)."""
        X_NI = at_least_float32(tensors[-1]).flatten(0, -2)
        if self.sum_II is None:
            self.sum_II = X_NI.T @ X_NI
        else:
            self.sum_II.addmm_(X_NI.T, X_NI)

    def merge(self, other: "Gram") -> None:
        """Take in what another collector has seen."""
        if other.sum_II is not None:
            self.sum_II = other.sum_II if self.sum_II is None else self.sum_II + other.sum_II

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `gram` [I, I]."""
        assert self.sum_II is not None, "no batch was observed"
        return {"gram": self.sum_II}


STATISTIC = Statistic(INPUTS, Gram)
