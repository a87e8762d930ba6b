"""Statistics of layers, collected by hooks while a model is walked."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from prunecli.methods._base import RequiredStatistic
from prunecli.model.stream import LayerStream, batches
from prunecli.pruning.stats import registry
from prunecli.pruning.stats._base import Collector

Stats = dict[str, Tensor]


class _Listening:
    """Collectors of one layer, attached while in use; `stats` is what they found."""

    def __init__(
        self, runner: LayerStream, i: int, layer: nn.Module, needs: tuple[RequiredStatistic, ...]
    ) -> None:
        self._collectors: dict[tuple[str, str], Collector] = {}
        self._names = partial(runner.arch.point, i)
        for need in needs:
            for point in need.points:
                self._collectors.setdefault((point, need.collector), registry.make(need.collector))
        self._hooks = []
        for point in {point for point, _ in self._collectors} - {"block"}:
            module = runner.arch.module(point)
            self._hooks.append(
                layer.get_submodule(module).register_forward_pre_hook(self._hook(point))
            )

    def _hook(self, point: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.hear(point, inputs[0])

        return hear

    def hear(self, point: str, *tensors: Tensor) -> None:
        for (at, _), collector in self._collectors.items():
            if at == point:
                collector.observe(*tensors)

    def stats(self) -> Stats:
        for hook in self._hooks:
            hook.remove()
        found: Stats = {}
        for (point, _), collector in self._collectors.items():
            for name, value in collector.result().items():
                found[f"{self._names(point)}.{name}"] = value
        return found


@torch.no_grad()
def dense(
    runner: LayerStream, ids: Tensor, needs: tuple[RequiredStatistic, ...]
) -> Iterator[Stats]:
    """Yield every layer's statistics from one pass over the unpruned model; ids are [N, T]."""
    hidden = runner.embed(ids)
    depth = runner.arch.layers
    for i in runner.report.track(range(depth), "calibrating", depth, "layers"):
        layer = runner.layer(i)
        listening = _Listening(runner, i, layer, needs)
        for rows in batches(ids):
            before = hidden[rows].to(runner.device)
            after = runner.forward(layer, i, before)
            listening.hear("block", before, after)
            hidden[rows] = after.to(hidden.device)
        yield {name: value.cpu() for name, value in listening.stats().items()}


@torch.no_grad()
def layerwise(
    runner: LayerStream, ids: Tensor, needs: tuple[RequiredStatistic, ...]
) -> Iterator[tuple[int, nn.Module, Stats]]:
    """Yield every layer with its statistics, to be edited in place: later layers see the edit.

    The statistics of a layer come from its unpruned weights on inputs out of edited layers: it
    runs once to be observed and, edited, once more to make the next layer's inputs. Statistics stay
    on the device.
    """
    hidden = runner.embed(ids)
    depth = runner.arch.layers
    for i in runner.report.track(range(depth), "pruning", depth, "layers"):
        layer = runner.layer(i)
        listening = _Listening(runner, i, layer, needs)
        for rows in batches(ids):
            before = hidden[rows].to(runner.device)
            listening.hear("block", before, runner.forward(layer, i, before))
        yield i, layer, listening.stats()
        if i + 1 < depth:
            for rows in batches(ids):
                after = runner.forward(layer, i, hidden[rows].to(runner.device))
                hidden[rows] = after.to(hidden.device)
