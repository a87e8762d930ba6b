"""What the residual stream looks like wherever a norm reads it."""

from functools import partial

import torch
from torch import Tensor

from prunecli.model.stream import LayerStream
from prunecli.pruning.stats._base import MODEL, Statistic


@torch.no_grad()
def residual_gram(runner: LayerStream, ids: Tensor) -> Tensor:
    """Return the sum of x x^T [D, D], float64, over tokens and points; ids are [N, T].

    x has unit root mean square; points are the inputs of all norms: what enters a layer, what its
    attention leaves, and what the last layer leaves.
    """
    size = (runner.arch.hidden, runner.arch.hidden)
    gram = torch.zeros(size, dtype=torch.float64, device=runner.device)
    state = {"hidden": runner.embed(ids), "gram": gram}

    def add(states: Tensor) -> None:
        flat = states.flatten(0, -2).double()
        flat = flat / flat.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        state["gram"].addmm_(flat.T, flat)

    depth = runner.arch.layers
    # a last step, after all layers, for what leaves them
    for i in runner.walk(range(depth + 1), "calibrating", "layers", state, spent=("hidden",)):
        hidden = state["hidden"]
        if i == depth:
            runner.each(runner.batches(ids), lambda states: add(runner.hidden(states)), hidden)
            continue
        layer = runner.layer(i)
        for name in runner.arch.norms(i):
            layer.get_submodule(name).register_forward_pre_hook(lambda module, args: add(args[0]))
        runner.each(runner.batches(ids), partial(runner.forward, layer, i), hidden, into=hidden)
    return runner.ranks.sum(state["gram"]).cpu()


STATISTIC = Statistic(
    MODEL, lambda stream, ids, count: residual_gram(stream, ids),
    shapes=lambda arch, count: {"residual_gram": (arch.hidden, arch.hidden)},
)  # fmt: skip
