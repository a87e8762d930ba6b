"""Statistics of layers, collected by hooks while a model is walked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from prunecli.methods._base import RequiredStatistic
from prunecli.model.stream import LayerStream, batches
from prunecli.pruning.stats import registry
from prunecli.pruning.stats._base import Collector

Stats = dict[str, Tensor]


class HookedCollectors:
    """Collectors of one layer, attached while in use; `statistics` is what they computed."""

    def __init__(
        self, stream: LayerStream, i: int, layer: nn.Module, needs: tuple[RequiredStatistic, ...]
    ) -> None:
        self._collectors: dict[tuple[str, str], Collector] = {}
        self._names, self._ranks = partial(stream.arch.point, i), stream.ranks
        for need in needs:
            for point in need.points:
                self._collectors.setdefault((point, need.name), registry.get(need.name).make())
        self._batch = torch.Size()
        self._hooks = [layer.register_forward_pre_hook(self._begin)]
        for point in {point for point, _ in self._collectors} - {"block"}:
            module = stream.arch.module(point)
            self._hooks.append(
                layer.get_submodule(module).register_forward_pre_hook(self._hook(point))
            )

    def _begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._batch = inputs[0].shape[:2]

    def _hook(self, point: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # some classes (OPT) flatten sequences before their FFN
            self.update(point, inputs[0].view(*self._batch, -1))

        return capture

    def update(self, point: str, *tensors: Tensor) -> None:
        for (hook_point, _), collector in self._collectors.items():
            if hook_point == point:
                collector.update(*tensors)

    def statistics(self) -> Stats:
        """Return what all processes collected, hold it no more and let go of the layer."""
        for hook in self._hooks:
            hook.remove()
        statistics: Stats = {}
        for (point, _), collector in self._collectors.items():
            if not self._ranks.alone:
                collector.reduce(self._ranks)
            for name, value in collector.compute().items():
                statistics[f"{self._names(point)}.{name}"] = value
        self._collectors.clear()
        return statistics


@torch.no_grad()
def dense(
    stream: LayerStream, ids: Tensor, needs: tuple[RequiredStatistic, ...]
) -> Iterator[Stats]:
    """Yield every layer's statistics from one pass over the unpruned model; ids are [N, T].

    Those that a stopped run yielded are left out: the caller keeps them.
    """
    state = {"hidden": stream.embed(ids)}
    for i in stream.walk(range(stream.arch.layers), "calibrating", "layers", state):
        layer, hidden = stream.layer(i), state["hidden"]
        hooked = HookedCollectors(stream, i, layer, needs)
        for rows in batches(ids):
            before = hidden[rows].to(stream.device)
            after = stream.forward(layer, i, before)
            hooked.update("block", before, after)
            hidden[rows] = after.to(hidden.device)
        yield {name: value.cpu() for name, value in hooked.statistics().items()}
    del state["hidden"]


@contextmanager
def _no_product(layer: nn.Module, name: str) -> Iterator[None]:
    """Let a linear of a layer give zeros, at no cost; what enters it is observed as before."""
    linear = layer.get_submodule(name)

    def zeros(states: Tensor) -> Tensor:
        return states.new_zeros(()).expand(*states.shape[:-1], len(linear.weight))  # type: ignore[arg-type]

    linear.forward = zeros
    try:
        yield
    finally:
        del linear.forward


@torch.no_grad()
def layerwise(
    stream: LayerStream, ids: Tensor, needs: tuple[RequiredStatistic, ...]
) -> Iterator[tuple[int, nn.Module, Stats]]:
    """Yield every layer with its statistics, to be edited in place: later layers see the edit.

    The statistics of a layer come from its unpruned weights on inputs out of edited layers: it
    runs once to be observed and, edited, once more to make the next layer's inputs. Nobody reads
    what leaves it at first, so its last product is made only for who observes it. Statistics stay
    on the device. Layers that a stopped run yielded are left out: the caller keeps what it made.
    """
    state, depth = {"hidden": stream.embed(ids)}, stream.arch.layers
    for i in stream.walk(range(depth), "pruning", "layers", state):
        layer, hidden = stream.layer(i), state["hidden"]
        hooked = HookedCollectors(stream, i, layer, needs)
        whole = any("block" in need.points for need in needs)
        with nullcontext() if whole else _no_product(layer, stream.arch.module("down")):
            for rows in batches(ids):
                before = hidden[rows].to(stream.device)
                hooked.update("block", before, stream.forward(layer, i, before))
        yield i, layer, hooked.statistics()
        if i + 1 < depth:
            for rows in batches(ids):
                after = stream.forward(layer, i, hidden[rows].to(stream.device))
                hidden[rows] = after.to(hidden.device)
    del state["hidden"]
