"""Statistics of weights and their gradients, with one layer's gradients in memory at a time."""

from collections.abc import Callable, Sequence
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


Formula = Callable[[list[WeightGradients], Arch], Stats]


def gradients(stream: LayerStream, ids: Tensor, formulas: Sequence[Formula]) -> Stats:
    """Return statistics of every layer's weights and their gradients of the mean loss.

    The states [N, T, D] between layers are kept from a forward pass, and each layer runs once more
    in the backward pass, a sequence at a time.
    """
    depth, steps, tokens = stream.arch.layers, list(batches(ids)), ids[:, 1:].numel()
    states = {"0": stream.embed(ids)}  # what enters each layer, and what leaves the last
    for i in stream.walk(range(depth), "forward pass", "layers", states):
        layer, here, there = stream.layer(i), str(i), str(i + 1)
        states[there] = stream.buffer(tuple(states[here].shape))
        with torch.no_grad():
            for rows in steps:
                after = stream.forward(layer, i, states[here][rows].to(stream.device))
                states[there][rows] = after.to(states[there].device)
    state: Stats = {}
    for i in stream.walk(range(depth + 1)[::-1], "backward pass", "layers", state):
        if i == depth:  # the first step: what left the last layer becomes the loss's gradient by it
            gradient = state["gradient"] = states.pop(str(depth))
            for rows in steps:
                gradient[rows] = stream.loss_gradient(gradient[rows], ids[rows]).to(gradient.device)
            continue
        layer = stream.layer(i, cast=True).requires_grad_(True)
        weights = _backward(stream, layer, i, states.pop(str(i)), state["gradient"], tokens)
        for formula in formulas:
            for part, value in formula(weights, stream.arch).items():
                state[f"{stream.arch.point(i, 'block')}.{part}"] = value.cpu()
        del weights, layer  # before those of the next
    del state["gradient"]
    return dict(sorted(state.items()))


def _backward(
    stream: LayerStream,
    layer: nn.Module,
    i: int,
    inputs: Tensor,
    output_gradient: Tensor,
    tokens: int,
) -> list[WeightGradients]:
    """Take `output_gradient` [N, T, D] back through a layer that reads `inputs`, in place.

    It is the gradient of the loss summed over all `tokens` that are predicted. Returns the
    gradients of the layer's weights.
    """
    axes = {name: tensor.axes for name, tensor in stream.arch.tensors().items()}
    prefix = stream.arch.prefix(i)
    weights = dict(layer.named_parameters())
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    for row in range(len(inputs)):
        before = inputs[row : row + 1].to(stream.device).requires_grad_(True)
        after = stream.forward(layer, i, before)
        torch.autograd.backward(
            after, output_gradient[row : row + 1].to(stream.device, after.dtype)
        )
        assert before.grad is not None
        output_gradient[row : row + 1] = before.grad.to(output_gradient.device)
        for name, weight in weights.items():
            assert weight.grad is not None
            slope = weight.grad.float() / tokens
            sums[name] += slope
            # of a mean over one sequence, where the slope is that of one over all
            squares[name].addcmul_(slope, slope, value=len(inputs))
            weight.grad = None
    return [
        WeightGradients(weight.detach().float(), sums[name], squares[name], axes[prefix + name])
        for name, weight in weights.items()
    ]
