"""Weights set to zero, matrix by matrix, as they stream by: what a sparse method's OUT holds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunecli.files.tensorfile import Tensors, torch_dtype
from prunecli.methods._base import Method
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning.calibration import Calibration
from prunecli.pruning.request import PruneRequest
from prunecli.pruning.score import at_point
from prunecli.report import Report
from prunecli.settings import Compute

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Sparsifier:
    """A method that sets weights to zero, at work on a model.

    `damped` tells which inputs needed more damping than was asked for, and how often it was raised
    tenfold; it is known when the stream has ended.
    """

    request: PruneRequest
    checkpoint: Checkpoint
    pattern: SparsityPattern
    compute: Compute
    report: Report
    damped: dict[str, int] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The method."""
        assert self.request.method is not None
        return self.request.method

    @property
    def options(self) -> dict[str, Any]:
        """What its formulas are told."""
        return {**self.request.options, "compat": self.request.compat}

    def stream(self, source: Calibration) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield every tensor, block linears with zeros; weights after their update."""
        import torch

        from prunecli.model import stream
        from prunecli.model.device import device_of
        from prunecli.pruning.stats import _hooks

        checkpoint, arch = self.checkpoint, self.checkpoint.arch
        walk: Iterator[tuple[int, nn.Module | None, Tensors]]
        if source.found is not None:
            runner = stream.LayerStream(checkpoint, self.compute, self.report)
            needs = self.method.needed(self.request.compat)
            walk = iter(_hooks.layerwise(runner, source.found.ids, needs))
        else:
            layers = self.report.track(range(arch.layers), "pruning", arch.layers, "layers")
            walk = ((i, None, source.tensors or {}) for i in layers)
        device = device_of(self.compute)
        done = set()
        for i, layer, stats in walk:
            for modules in arch.family.inputs:
                point = f"model.layers.{i}.{modules[0]}:in"
                found = {k: v.to(device) for k, v in at_point(stats, point).items()}
                factor = self._factor(found, point)
                for module in modules:
                    name = f"model.layers.{i}.{module}.weight"
                    dtype = torch_dtype(checkpoint.specs[name].dtype)
                    live = None if layer is None else layer.get_submodule(module)
                    if live is not None and live.weight.dtype == dtype:
                        # as it is stored, it is on the device already
                        parent = live.weight.detach()  # type: ignore[operator]
                    else:
                        parent = checkpoint.tensor(name).to(device)
                    pruned = self._sparsify(parent.float(), factor)
                    stored = pruned.to(dtype)
                    if live is not None:
                        exact = pruned if self.request.compat else stored
                        weight = exact.to(live.weight.dtype)  # type: ignore[arg-type]
                        live.weight = torch.nn.Parameter(weight, requires_grad=False)
                    done.add(name)
                    yield name, stored.cpu()
        for name in checkpoint.specs.keys() - done:
            yield name, checkpoint.tensor(name)

    def _factor(self, stats: Tensors, point: str) -> Any:
        if self.method.prepare is None:
            return None
        factor = self.method.prepare(stats, self.options)
        if isinstance(factor, dict) and int(factor.get("retries", 0)):
            self.damped[point] = int(factor["retries"])
            self.report.note(f"{point}: damping was raised tenfold {self.damped[point]} times")
        return factor

    def _sparsify(self, weight_OI: "torch.Tensor", factor: Any) -> "torch.Tensor":
        assert self.method.sparsify is not None
        pruned: torch.Tensor = self.method.sparsify(weight_OI, factor, self.pattern, self.options)
        return pruned
