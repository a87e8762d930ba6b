"""First-order Taylor importance of a whole layer: what its weights would change in the loss."""

import torch

from prunecli.model.arch import Arch
from prunecli.pruning.stats._base import GRADIENTS, Statistic
from prunecli.pruning.stats._gradients import WeightGradients
from prunecli.pruning.stats._hooks import Stats


def taylor(weights: list[WeightGradients], arch: Arch, i: int) -> Stats:
    """Return `taylor` [1]: the sum of |w dL/dw| over all weights of a layer."""
    total = sum((s.weight * s.gradient).abs().double().sum() for s in weights)
    return {"taylor": torch.as_tensor(total).view(1)}


STATISTIC = Statistic(GRADIENTS, taylor, shapes=lambda arch, i: {"taylor": (1,)})
