"""Losses of whole models without some of their layers, by running what they share only once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prunecli.model.stream import LayerStream, batches
from prunecli.pruning.stats._base import MODEL, Statistic

STREAMS = 1 << 30  # bytes of hidden states at once


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
    of streams: memory does not grow with the calibration set, and layers are not loaded for less.
    """
    alive = range(runner.arch.layers) if alive is None else alive
    depth = len(alive)
    starts = range(depth - skip + 1) if starts is None else starts
    totals = torch.zeros(len(starts), dtype=torch.float64)
    chunks = list(_chunks(runner, ids, len(starts) + 1))
    for rows in runner.report.progress(chunks, "trying blocks", len(chunks), "chunks"):
        dense = runner.embed(ids[rows]).to(runner.device)
        pieces = list(batches(ids[rows]))

        def advance(stream: Tensor, layer: nn.Module, j: int, pieces: list[slice]) -> None:
            for piece in pieces:
                stream[piece] = runner.forward(layer, j, stream[piece])

        streams: dict[int, Tensor] = {}
        walk = runner.report.progress(list(enumerate(alive)), "running layers", depth, "layers")
        for position, j in walk:
            if position in starts:
                streams[position] = dense.clone()
            layer = runner.layer(j)
            for start, stream in streams.items():
                if start + skip <= position:
                    advance(stream, layer, j, pieces)
            if position < starts[-1]:
                advance(dense, layer, j, pieces)
        if depth in starts:  # a start after the last layer is the whole model
            streams[depth] = dense
        for index, start in enumerate(starts):
            for piece in pieces:
                totals[index] += runner.losses(streams[start][piece], ids[rows][piece]).sum()
    return totals / (ids.shape[0] * (ids.shape[1] - 1))


def _chunks(runner: LayerStream, ids: Tensor, streams: int) -> Iterator[slice]:
    """Yield slices of rows [N, T] of whole batches, whose streams take about `STREAMS` bytes."""
    batch = next(batches(ids)).stop
    row = streams * ids.shape[1] * runner.arch.hidden * runner.dtype.itemsize
    size = batch * max(1, STREAMS // (batch * row))
    for start in range(0, len(ids), size):
        yield slice(start, min(start + size, len(ids)))


STATISTIC = Statistic(
    MODEL, skip_losses,
    shapes=lambda arch, count: {f"skip_loss.{count}": (arch.layers - count + 1,)},
    depends_on_amount=True,
)  # fmt: skip
