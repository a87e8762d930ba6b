"""Weights set to zero, matrix by matrix, as they stream by: what a sparse method's OUT holds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from prunecli.files.keeping import Keeper
from prunecli.files.tensorfile import Spec
from prunecli.methods._base import Method
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning.calibration import Calibration
from prunecli.pruning.score import at_point
from prunecli.settings import RunContext

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prunecli.model.checkpoint import Stream

    Take = Callable[[str], dict[str, torch.Tensor]]


@dataclass
class WeightMasker:
    """A method that sets weights to zero, at work on a model.

    Attributes:
        options: what its formulas read, `compat` included.
        keeper: keeps its work; tensors that a stopped run yielded do not come again.
        damping_retries: which inputs needed more damping than was asked for, and how often it was
            raised tenfold; known when the stream has ended.
    """

    method: Method
    options: Mapping[str, Any]
    pattern: SparsityPattern
    dense: Checkpoint
    run: RunContext
    keeper: Keeper
    damping_retries: dict[str, int] = field(default_factory=dict)

    def stream(self, calibration: Calibration) -> "Stream":
        """Yield every tensor, block linears with zeros; weights after their update."""
        from prunecli.model.device import device_of

        dense, device = self.dense, device_of(self.run.compute)
        inputs = product(range(dense.arch.layers), dense.arch.inputs())
        points = [f"{dense.arch.prefix(i)}{modules[0]}:in" for i, modules in inputs]
        retries = self.keeper.remembered("damping", dict.fromkeys(points, Spec("I64", ())))
        self.damping_retries.update({point: int(count) for point, count in retries.items()})
        for i, layer, take in self._layers(calibration):
            for modules in dense.arch.inputs():
                point = f"{dense.arch.prefix(i)}{modules[0]}:in"
                precomputed = self._precompute(take(point), point, retries)
                for module in modules:
                    name = f"{dense.arch.prefix(i)}{module}.weight"
                    loaded = None if layer is None else layer.get_submodule(module)
                    yield name, (self._pruned(name, loaded, precomputed, device).cpu(),)
                del precomputed  # a factor, before the next is made
        linears = {
            f"{dense.arch.prefix(i)}{module}.weight"
            for i in range(dense.arch.layers)
            for modules in dense.arch.inputs()
            for module in modules
        }
        for name in dense.specs.keys() - linears:
            yield name, dense.parts(name)

    def _layers(self, calibration: Calibration) -> "Iterator[tuple[int, nn.Module | None, Take]]":
        """Yield every layer with what takes its statistics at a point, each once, by their names.

        A layer is run on pruned predecessors, and what was taken is held no more; or statistics
        are read from a file.
        """
        if calibration.windows is None:
            depth = self.dense.arch.layers
            for i in range(depth):
                yield i, None, partial(at_point, calibration.tensors or {})
            return
        from prunecli.model.stream import LayerStream
        from prunecli.pruning.stats import _hooks

        stream = LayerStream(self.dense, self.run.compute, self.run.report, self.keeper)
        required = self.method.needed(bool(self.options["compat"]))
        for i, layer, statistics in _hooks.layerwise(stream, calibration.windows.ids, required):
            yield i, layer, partial(_take, statistics)

    def _pruned(
        self, name: str, loaded: "nn.Module | None", precomputed: Any, device: "torch.device"
    ) -> "torch.Tensor":
        """Return a weight [O, I] with zeros, as it is stored; put it into the `loaded` linear."""
        import torch

        # what is on the device already is not read again
        known = None if loaded is None else loaded.weight.detach()  # type: ignore[operator]
        weight = self.dense.tensor(name).to(device) if known is None else known
        assert self.method.sparsify is not None
        pruned = self.method.sparsify(weight.float(), precomputed, self.pattern, self.options)
        stored: torch.Tensor = pruned.to(weight.dtype)
        if loaded is not None:
            seen = pruned if self.options["compat"] else stored
            loaded.weight = torch.nn.Parameter(seen, requires_grad=False)
        return stored

    def _precompute(
        self,
        statistics: "Mapping[str, torch.Tensor]",
        point: str,
        retries: "dict[str, torch.Tensor]",
    ) -> Any:
        """Return what the method makes once per distinct input: norms, or a Hessian's factor."""
        import torch

        from prunecli.model.device import device_of

        if self.method.prepare is None:
            return None
        device = device_of(self.run.compute)
        on_device = {name: tensor.to(device) for name, tensor in statistics.items()}
        precomputed = self.method.prepare(on_device, self.options)
        if isinstance(precomputed, dict) and int(precomputed.get("retries", 0)):
            self.damping_retries[point] = int(precomputed["retries"])
            retries[point] = torch.tensor(self.damping_retries[point])
            self.run.report.info(
                f"{point}: damping was raised tenfold {self.damping_retries[point]} times"
            )
        return precomputed


def _take(statistics: "dict[str, torch.Tensor]", point: str) -> "dict[str, torch.Tensor]":
    """Return the statistics of one point, by their own names, and hold them no more."""
    taken = at_point(statistics, point)
    for name in taken:
        del statistics[f"{point}.{name}"]
    return taken
