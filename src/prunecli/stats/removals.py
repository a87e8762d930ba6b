"""Losses of whole models without some of their layers, by running what they share only once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.stats.run import Runner, batches


@torch.no_grad()
def sequence_losses(runner: Runner, ids: Tensor, without: range = range(0)) -> Tensor:
    """Return every sequence's summed loss [N] in nats, of the model without some layers."""
    hidden = runner.embed(ids)
    layers = [i for i in range(runner.arch.layers) if i not in without]
    for i in runner.report.track(layers, "evaluating", len(layers), "layers"):
        layer = runner.layer(i)
        for rows in batches(ids):
            after = runner.forward(layer, i, hidden[rows].to(runner.device))
            hidden[rows] = after.to(hidden.device)
    return torch.cat([runner.losses(hidden[rows], ids[rows]) for rows in batches(ids)])


@torch.no_grad()
def skip_losses(
    runner: Runner,
    ids: Tensor,
    skip: int,
    alive: Sequence[int] | None = None,
    starts: range | None = None,
) -> Tensor:
    """Return the mean loss per token without `skip` layers in a row, for every start.

    The model is that of the `alive` layers (all of them), `starts` are positions among these.
    Candidates share the dense prefix: the stream that enters the layer at i goes on, for candidate
    i, at i + skip. A batch of rows at a time, so that memory does not grow with the calibration
    set; half the layer runs of trying each alone.
    """
    alive = range(runner.arch.layers) if alive is None else alive
    depth = len(alive)
    starts = range(depth - skip + 1) if starts is None else starts
    totals = torch.zeros(len(starts), dtype=torch.float64)
    steps = list(batches(ids))
    for rows in runner.report.track(steps, "trying blocks", len(steps), "batches"):
        dense_state = runner.embed(ids[rows]).to(runner.device)
        streams: dict[int, Tensor] = {}
        for position, j in enumerate(alive):
            if position in starts:
                streams[position] = dense_state
            layer = runner.layer(j)
            for start, stream in streams.items():
                if start + skip <= position:
                    streams[start] = runner.forward(layer, j, stream)
            if position < starts[-1]:
                dense_state = runner.forward(layer, j, dense_state)
        if depth in starts:  # a start after the last layer is the whole model
            streams[depth] = dense_state
        for index, start in enumerate(starts):
            totals[index] += runner.losses(streams[start], ids[rows]).sum()
    return totals / (ids.shape[0] * (ids.shape[1] - 1))


def greedy_skips(runner: Runner, ids: Tensor, count: int) -> Tensor:
    """Return in which round each layer goes [L]: 0 .. count - 1, infinite for those that stay.

    In each round every alive layer but the first and the last is tried, and the one goes without
    which the loss is lowest.
    """
    alive = list(range(runner.arch.layers))
    rounds = torch.full((len(alive),), torch.inf, dtype=torch.float64)
    for turn in runner.report.track(range(count), "removing layers", count, "layers"):
        losses = skip_losses(runner, ids, 1, alive, range(1, len(alive) - 1))
        rounds[alive.pop(1 + int(losses.argmin()))] = turn
    return rounds
