"""Which layer goes in which round, where in each the one goes that is missed least."""

import torch
from torch import Tensor

from prunecli.model.stream import LayerStream
from prunecli.pruning.stats._base import MODEL, Statistic
from prunecli.pruning.stats.skip_loss import runs, skip_losses


def greedy_skips(runner: LayerStream, ids: Tensor, count: int) -> Tensor:
    """Return in which round each layer goes [L]: 0 .. count - 1, infinite for those that stay.

    In each round every alive layer but the first and the last is tried, and of those that leave a
    model the one goes without which the loss is lowest.
    """
    state = {"rounds": torch.full((runner.arch.layers,), torch.inf, dtype=torch.float64)}
    for turn in runner.walk(range(count), "removing layers", "layers", state):
        alive = state["rounds"].isinf().nonzero()[:, 0].tolist()
        if len(alive) != runner.arch.layers - turn:
            raise runner.keeper.misfit(f"{len(alive)} layers are left after {turn} rounds")
        losses = skip_losses(runner, ids, 1, alive, range(1, len(alive) - 1))
        for n, layer in enumerate(alive[1:-1]):
            if runner.arch.lost([i for i in alive if i != layer]):
                losses[n] = torch.inf
        state["rounds"][alive[1 + int(losses.argmin())]] = turn
    return state["rounds"]


STATISTIC = Statistic(
    MODEL, greedy_skips, shapes=lambda arch, count: {f"greedy_skip.{count}": (arch.layers,)},
    depends_on_amount=True,
    passes=lambda arch, count: sum(
        runs(alive, 1, range(1, alive - 1))
        for alive in range(arch.layers, arch.layers - count, -1)
    ) / arch.layers,
)  # fmt: skip
