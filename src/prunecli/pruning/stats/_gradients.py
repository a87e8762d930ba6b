"""Statistics of weights and their gradients, with one layer's gradients in memory at a time."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunecli.files.tensorfile import Spec, spec_of
from prunecli.model.arch import Arch
from prunecli.model.stream import LayerStream
from prunecli.pruning.stats._base import Statistic
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


def gradients(stream: LayerStream, ids: Tensor, records: Sequence[Statistic]) -> Stats:
    """Return statistics of every layer's weights and their gradients of the mean loss.

    The states [N, T, D] between layers are kept from a forward pass, and each layer runs once more
    in the backward pass, a sequence at a time.
    """
    depth, steps = stream.arch.layers, list(stream.batches(ids))
    tokens = stream.ranks.total(ids[:, 1:].numel())
    state = {"0": stream.embed(ids)}  # what enters each layer, and what leaves the last
    holds = partial(_held, stream.arch, spec_of(state["0"]), records)
    # forward, then backward: at first through what the loss is computed with
    passes = [*((True, i) for i in range(depth)), *((False, i) for i in range(depth + 1)[::-1])]
    for forward, i in stream.walk(passes, "gradients", "layers", state, holds, ("gradient",)):
        if forward:
            state[str(i + 1)] = _forward(stream, i, state[str(i)], steps)
            continue
        if i == depth:  # what left the last layer becomes the loss's gradient by it
            gradient = state["gradient"] = state.pop(str(depth))
            stream.each(steps, stream.loss_gradient, gradient, ids, into=gradient)
            continue
        layer = stream.layer(i, cast=True).requires_grad_(True)
        weights = _backward(stream, layer, i, state.pop(str(i)), state["gradient"], tokens)
        for record in records:
            for part, value in record.make(weights, stream.arch, i).items():
                state[f"{stream.arch.block(i)}.{part}"] = value.cpu()
        del weights, layer  # before those of the next
    return dict(sorted(state.items()))


def _held(arch: Arch, hidden: Spec, records: Sequence[Statistic], done: int) -> dict[str, Spec]:
    """Return what the state of `gradients` is after so many of its passes."""
    depth = arch.layers
    back = max(done - depth, 0)
    states = [str(i) for i in range(min(done, depth) + 1 - back)]
    specs = dict.fromkeys([*states, *["gradient"] * (back > 0)], hidden)
    for i in range(depth + 1 - back, depth) if back else ():
        for record in records:
            specs |= record.specs(arch, arch.block(i), i)
    return specs


@torch.no_grad()
def _forward(stream: LayerStream, i: int, inputs: Tensor, steps: list[slice]) -> Tensor:
    """Return what leaves layer `i`, which `inputs` [N, T, D] enter."""
    layer, outputs = stream.layer(i), stream.buffer(tuple(inputs.shape))
    stream.each(steps, partial(stream.forward, layer, i), inputs, into=outputs)
    return outputs


def _backward(
    stream: LayerStream,
    layer: nn.Module,
    i: int,
    inputs: Tensor,
    output_gradient: Tensor,
    tokens: int,
) -> list[WeightGradients]:
    """Take `output_gradient` [N, T, D] back through a layer that reads `inputs`, in place.

    It is the gradient of the loss summed over all `tokens` that are predicted, by all processes.
    Returns the gradients of the layer's weights.
    """
    sequences = tokens // (inputs.shape[1] - 1)
    axes = {name: tensor.axes for name, tensor in stream.arch.tensors().items()}
    prefix = stream.arch.prefix(i)
    weights = dict(layer.named_parameters())
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}

    def one(entered: Tensor, gradient: Tensor) -> Tensor:
        before = entered.detach().requires_grad_(True)
        after = stream.forward(layer, i, before)
        torch.autograd.backward(after, gradient.to(after.dtype))
        for name, weight in weights.items():
            if weight.grad is None:
                assert "bias" in name  # one that only chooses experts has no slope
                continue
            slope = weight.grad.float() / tokens
            sums[name] += slope
            # of a mean over one sequence, where the slope is that of one over all
            squares[name].addcmul_(slope, slope, value=sequences)
            weight.grad = None
        assert before.grad is not None
        return before.grad

    rows = [slice(row, row + 1) for row in range(len(inputs))]
    stream.each(rows, one, inputs, output_gradient, into=output_gradient)
    for total in (*sums.values(), *squares.values()):
        stream.ranks.sum(total)
    return [
        WeightGradients(weight.detach().float(), sums[name], squares[name], axes[prefix + name])
        for name, weight in weights.items()
    ]
