"""Losses of whole models without some of their layers, by running what they share only once."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from prunecli.files.tensorfile import Spec, spec_of
from prunecli.model.stream import LayerStream
from prunecli.pruning.stats._base import MODEL, Statistic
from prunecli.settings import BATCH_TOKENS

DENSE = "dense"


@torch.no_grad()
def skip_losses(
    runner: LayerStream,
    ids: Tensor,
    skip: int,
    alive: Sequence[int] | None = None,
    starts: range | None = None,
) -> Tensor:
    """Return the mean loss per token without `skip` layers in a row, for every start.

    The model is that of the `alive` layers (all of them), `starts` are positions among these.
    Candidates share the dense prefix: the stream that enters the layer at i goes on, for candidate
    i, at i + skip; half the layer runs of trying each alone. As many rows at a time as make a GiB
    of streams, or a quarter of `--memory`: memory does not grow with the calibration set, and
    layers are not loaded for less.
    """
    alive = range(runner.arch.layers) if alive is None else alive
    depth = len(alive)
    starts = range(depth - skip + 1) if starts is None else starts
    totals = {"losses": torch.zeros(len(starts), dtype=torch.float64)}
    chunks = list(_chunks(runner, ids, len(starts) + 1))
    for rows in runner.walk(chunks, "trying blocks", "chunks", totals):
        pieces = list(runner.batches(ids[rows]))
        # the dense one under a name that no start has, and one for every start
        streams = {DENSE: runner.embed(ids[rows]).to(runner.device)}
        spec = spec_of(streams[DENSE])

        def holds(done: int, spec: Spec = spec) -> dict[str, Spec]:
            begun = (str(start) for start in starts if start < done)
            return dict.fromkeys([DENSE, *begun], spec)

        walk = runner.walk(list(enumerate(alive)), "running layers", "layers", streams, holds)
        for position, j in walk:
            running = [str(start) for start in starts if start + skip <= position]
            gone = range(alive[position - 1] + 1 if position else 0, j)
            for name in [*(name for name in running if name != str(position - skip)), DENSE]:
                runner.skip(gone, streams[name])
            if position in starts:
                streams[str(position)] = streams[DENSE].clone()
                after = [*alive, runner.arch.layers][position + skip]
                runner.skip(range(j, after), streams[str(position)])
            forward = partial(runner.forward, runner.layer(j), j)
            for name in [*running, *[DENSE] * (position < starts[-1])]:
                runner.each(pieces, forward, streams[name], into=streams[name])
        for index, start in enumerate(starts):
            # a start after the last layer is the whole model
            stream = streams[DENSE if start == depth else str(start)]
            for piece in pieces:
                totals["losses"][index] += runner.losses(stream[piece], ids[rows][piece]).sum()
    return runner.ranks.sum(totals["losses"]) / runner.ranks.total(ids[:, 1:].numel())


def runs(depth: int, skip: int, starts: range) -> int:
    """Return how many layers run where `skip` of `depth` are left out at each of these starts."""
    return min(starts[-1], depth) + sum(depth - start - skip for start in starts) if starts else 0


def _chunks(runner: LayerStream, ids: Tensor, streams: int) -> Iterator[slice]:
    """Yield slices of rows [N, T] of whole batches, whose streams take about as much as may be."""
    batch = max(1, BATCH_TOKENS // ids.shape[1])
    row = streams * ids.shape[1] * runner.arch.states_width * runner.dtype.itemsize
    size = batch * max(1, runner.streams_bytes // (batch * row))
    for start in range(0, len(ids), size):
        yield slice(start, min(start + size, len(ids)))


STATISTIC = Statistic(
    MODEL, skip_losses,
    shapes=lambda arch, count: {f"skip_loss.{count}": (arch.layers - count + 1,)},
    depends_on_amount=True,
    passes=lambda arch, count: (
        runs(arch.layers, count, range(arch.layers - count + 1)) / arch.layers
    ),
)  # fmt: skip
