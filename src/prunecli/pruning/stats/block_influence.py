"""How much a layer turns the residual stream: 1 - mean cosine of its input and output."""

from typing import TYPE_CHECKING

from prunecli.pruning.stats._base import INPUTS, Statistic, at_least_float32
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch


class BlockInfluence:
    """Collects `block_influence` [1] in fp64, over tokens; cosines are fp32."""

    names = ("block_influence",)

    def __init__(self) -> None:
        self.count = 0
        self.cosines: torch.Tensor | float = 0.0  # a tensor, so that no batch is waited for

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take a layer's input and output, [B, T, D] each."""
        import torch

        before, after = (at_least_float32(tensor) for tensor in tensors)
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
        self.count += cosine.numel()
        self.cosines = self.cosines + cosine.double().sum()

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""
        import torch

        self.count = ranks.total(self.count)
        self.cosines = ranks.sum(torch.as_tensor(self.cosines, dtype=torch.float64))

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return `block_influence` [1]."""
        import torch

        mean = torch.as_tensor(self.cosines, dtype=torch.float64) / self.count
        return {"block_influence": (1 - mean).reshape(1)}


STATISTIC = Statistic(INPUTS, BlockInfluence)
