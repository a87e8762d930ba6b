"""What a router sends to every expert, and how much that adds to the residual stream."""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch


class Routed:
    """Collects over tokens, for weights g and outputs f of experts, in fp64:

    `tokens` [E], how many have a weight above 0, and `added` [E], the sum of g ||f||.
    """

    names = ("tokens", "added")

    def __init__(self) -> None:
        self.tokens: torch.Tensor | float = 0.0
        self.added: torch.Tensor | float = 0.0

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take weights and norms of a batch, [B, T, E] each."""
        sent_NE, norm_NE = (tensor.double().flatten(0, -2) for tensor in tensors)
        self.tokens = self.tokens + (sent_NE > 0).sum(0).double()
        self.added = self.added + (sent_NE * norm_NE).sum(0)

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""
        import torch

        self.tokens = ranks.sum(torch.as_tensor(self.tokens))
        self.added = ranks.sum(torch.as_tensor(self.added))

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `tokens` and `added`, [E] each."""
        import torch

        return {"tokens": torch.as_tensor(self.tokens), "added": torch.as_tensor(self.added)}


STATISTIC = Statistic(INPUTS, Routed)
