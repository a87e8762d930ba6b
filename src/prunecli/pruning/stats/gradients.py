"""Statistics of weights and their gradients, with one layer's gradients in memory at a time."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunecli.model.arch import Arch
from prunecli.model.stream import LayerStream, batches
from prunecli.pruning.stats._hooks import Stats


class WeightGradients(NamedTuple):
    """One weight of a layer in float32, its gradient, and the mean square of that over sequences.

    `gradient` is that of the mean loss over all tokens; `square` the mean over sequences of the
    squared gradient of one sequence's mean loss. `axes` are those of the family's table.
    """

    weight: Tensor
    gradient: Tensor
    square: Tensor
    axes: tuple[str, ...]


def gradients(runner: LayerStream, ids: Tensor, names: list[str]) -> Stats:
    """Return statistics of every layer's weights and their gradients of the mean loss.

    The states between layers are kept from a pass forward, and each layer runs once more on the
    way back, a sequence at a time.
    """
    depth, steps = runner.arch.layers, list(batches(ids))
    states = [runner.embed(ids)]
    for i in runner.report.track(range(depth), "running forward", depth, "layers"):
        layer = runner.layer(i)
        states.append(runner.buffer(tuple(states[0].shape)))
        with torch.no_grad():
            for rows in steps:
                after = runner.forward(layer, i, states[i][rows].to(runner.device))
                states[i + 1][rows] = after.to(states[0].device)
    flowing = states.pop()
    for rows in steps:
        flowing[rows] = runner.loss_gradient(flowing[rows], ids[rows]).to(flowing.device)
    found: Stats = {}
    for i in runner.report.track(range(depth)[::-1], "running back", depth, "layers"):
        layer = runner.layer(i).requires_grad_(True)
        slopes = _back(runner, layer, i, states.pop(), flowing, ids[:, 1:].numel())
        for name in names:
            for part, value in OF_GRADIENTS[name].of(slopes, runner.arch).items():
                found[f"{runner.arch.point(i, 'block')}.{part}"] = value.cpu()
    return dict(sorted(found.items()))


def _back(
    runner: LayerStream, layer: nn.Module, i: int, entering: Tensor, flowing: Tensor, tokens: int
) -> list[WeightGradients]:
    """Take `flowing` [N, T, D] back through a layer, in place; return its weights' slopes.

    What flows is the gradient of the loss summed over all `tokens` that are predicted.
    """
    axes = {name: tensor.axes for name, tensor in runner.arch.tensors().items()}
    weights = dict(layer.named_parameters())
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    for row in range(len(entering)):
        before = entering[row : row + 1].to(runner.device).requires_grad_(True)
        after = runner.forward(layer, i, before)
        torch.autograd.backward(after, flowing[row : row + 1].to(runner.device, after.dtype))
        assert before.grad is not None
        flowing[row : row + 1] = before.grad.to(flowing.device)
        for name, weight in weights.items():
            assert weight.grad is not None
            slope = weight.grad.float() / tokens
            sums[name] += slope
            # of a mean over one sequence, where the slope is that of one over all
            squares[name].addcmul_(slope, slope, value=len(entering))
            weight.grad = None
    return [
        WeightGradients(
            weight.detach().float(), sums[name], squares[name], axes[f"model.layers.{i}.{name}"]
        )
        for name, weight in weights.items()
    ]


def _taylor(slopes: list[WeightGradients], arch: Arch) -> Stats:
    """Return `taylor` [1]: the sum of |w dL/dw| over all weights of a layer."""
    total = sum((s.weight * s.gradient).abs().double().sum() for s in slopes)
    return {"taylor": torch.as_tensor(total).view(1)}


# saliences of single weights; `vector` is summed with signs before the absolute value
SALIENCES: Mapping[str, Callable[[WeightGradients], Tensor]] = {
    "element1": lambda s: (s.weight * s.gradient).abs(),
    "element2": lambda s: s.weight.square() * s.square,
    "mix": lambda s: (s.weight * s.gradient - s.weight.square() * s.square / 2).abs(),
    "vector": lambda s: s.weight * s.gradient,
}


UNITS = ("heads", "kv_heads", "ffn")


def _channels(slopes: list[WeightGradients], arch: Arch) -> Stats:
    """Return `AXIS.SALIENCE` [I]: saliences summed over every row or column of a channel.

    A channel of `heads` has a row of q and a column of o, one of `kv_heads` a row of k and one of
    v, one of `ffn` a row of gate and of up and a column of down.
    """
    found: Stats = {}
    for entry in (s for s in slopes if len(s.axes) == 2):
        for name, salience in SALIENCES.items():
            values = salience(entry).double()
            for dim, axis in enumerate(entry.axes):
                for part, place in zip(axis.split("+"), arch.segments(axis), strict=True):
                    if part in UNITS:
                        share = values.sum(1 - dim)[place].abs()
                        key = f"{part}.{name}"
                        found[key] = found[key] + share if key in found else share
    return found


class OfGradients(NamedTuple):
    """A statistic of a layer's slopes, and how long each of its parts is."""

    of: Callable[[list[WeightGradients], Arch], Stats]
    lengths: Callable[[Arch], dict[str, int]]


OF_GRADIENTS: dict[str, OfGradients] = {
    "taylor": OfGradients(_taylor, lambda arch: {"taylor": 1}),
    "taylor_channels": OfGradients(
        _channels,
        lambda arch: {f"{axis}.{name}": arch.length(axis) for axis in UNITS for name in SALIENCES},
    ),
}
