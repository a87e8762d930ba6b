"""Statistics of whole models, by name."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from prunecli.model.arch import Arch
from prunecli.model.stream import LayerStream
from prunecli.pruning.stats.removals import greedy_skips, skip_losses
from prunecli.pruning.stats.residual import residual_gram


class OfModels(NamedTuple):
    """How a statistic is made of ids [N, T], its shape, and whether it asks how many layers go."""

    of: Callable[[LayerStream, Tensor, int], Tensor]
    shape: Callable[[Arch, int], tuple[int, ...]]
    of_amount: bool = True

    def name(self, collector: str, skip: int) -> str:
        """Return what the statistic is called in a file."""
        return f"{collector}.{skip}" if self.of_amount else collector


OF_MODELS = {
    "skip_loss": OfModels(skip_losses, lambda arch, skip: (arch.layers - skip + 1,)),
    "greedy_skip": OfModels(greedy_skips, lambda arch, skip: (arch.layers,)),
    "residual_gram": OfModels(
        lambda runner, ids, skip: residual_gram(runner, ids),
        lambda arch, skip: (arch.hidden, arch.hidden),
        of_amount=False,
    ),
}
