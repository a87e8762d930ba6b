"""Weights set to zero, matrix by matrix, as they stream by: what a sparse method's OUT holds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.files.keeping import Keeper
from prunecli.files.tensorfile import Spec, torch_dtype
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
        dense = self.dense
        layers = range(dense.arch.layers)
        inputs = [(i, modules) for i in layers for modules in dense.arch.inputs(i)]
        points = [f"{dense.arch.prefix(i)}{modules[0]}:in" for i, modules in inputs]
        retries = self.keeper.remembered("damping", dict.fromkeys(points, Spec("I64", ())))
        self.damping_retries.update({point: int(count) for point, count in retries.items()})
        owners = {dense.arch.kinds[i]: self._owners(i) for i in dense.arch.sorts}
        for i, layer, take in self._layers(calibration):
            yield from self._linears(i, layer, take, retries, owners[dense.arch.kinds[i]])
        linears = {
            f"{dense.arch.prefix(i)}{module}.weight" for i, modules in inputs for module in modules
        }
        for name in dense.specs.keys() - linears:
            yield name, dense.parts(name)

    def _layers(self, calibration: Calibration) -> "Iterator[tuple[int, nn.Module | None, Take]]":
        """Yield every layer with what takes its statistics at a point, each once, by their names.

        A layer is run on pruned predecessors, and what was taken is held no more; or statistics
        are read from a file.
        """
        if calibration.windows is None:
            from prunecli.model.device import whole_float32

            with whole_float32():
                for i in range(self.dense.arch.layers):
                    yield i, None, partial(at_point, calibration.tensors or {})
            return
        from prunecli.model.stream import LayerStream
        from prunecli.pruning.stats import _hooks

        stream = LayerStream(self.dense, self.run.compute, self.run.report, self.keeper)
        required = self.method.needed(bool(self.options["compat"]))
        for i, layer, statistics in _hooks.layerwise(stream, calibration.windows.ids, required):
            yield i, layer, partial(_take, statistics)

    def _linears(
        self,
        i: int,
        layer: "nn.Module | None",
        take: "Take",
        retries: "dict[str, torch.Tensor]",
        owners: Mapping[tuple[str, ...], int],
    ) -> "Stream":
        """Yield the linears of a layer, pruned; of several processes each prunes some, for all."""
        ranks, prefix = self.run.ranks, self.dense.arch.prefix(i)
        mine = self._made(i, layer, take, retries, owners)
        if not ranks.alone:
            # before any process waits for what another one makes
            mine = iter(list(mine))
        for modules, owner in owners.items():
            for module in modules:
                name = f"{prefix}{module}.weight"
                loaded = None if layer is None else layer.get_submodule(module)
                # no variable holds what is made while the next one is
                made = partial(next, mine) if owner == ranks.rank else partial(self._room, name)
                yield name, (self._put(name, loaded, ranks.sent(made(), owner)).cpu(),)
            self._share_retries(f"{prefix}{modules[0]}:in", retries)

    def _room(self, name: str) -> "torch.Tensor":
        """Return room for a pruned weight that another process makes."""
        import torch

        from prunecli.model.device import device_of

        shape, device = self.dense.specs[name].shape, device_of(self.run.compute)
        return torch.empty(shape, dtype=torch.float32, device=device)

    def _owners(self, i: int) -> dict[tuple[str, ...], int]:
        """Return which process prunes what reads one input of layer `i`, for every input.

        The dearest goes first, to the process that has least: a factor of the input's Gram matrix
        costs I^3, and updating weights [O, I] by it O I^2.
        """
        arch, ranks = self.dense.arch, self.run.ranks
        costs = {}
        for modules in arch.inputs(i):
            shapes = [self.dense.specs[f"{arch.prefix(i)}{one}.weight"].shape for one in modules]
            inputs = shapes[0][1]
            costs[modules] = inputs**2 * (inputs + sum(outputs for outputs, _ in shapes))
        loads, owners = [0] * ranks.world, {}
        for modules in sorted(costs, key=lambda one: -costs[one]):
            owners[modules] = loads.index(min(loads))
            loads[owners[modules]] += costs[modules]
        return {modules: owners[modules] for modules in costs}

    def _made(
        self,
        i: int,
        layer: "nn.Module | None",
        take: "Take",
        retries: "dict[str, torch.Tensor]",
        owners: Mapping[tuple[str, ...], int],
    ) -> "Iterator[torch.Tensor]":
        """Yield the pruned weights [O, I] of layer `i` that this process makes, in float32."""
        prefix = self.dense.arch.prefix(i)
        for modules, owner in owners.items():
            point = f"{prefix}{modules[0]}:in"
            if owner != self.run.ranks.rank:
                take(point)
                continue
            # no variable holds what is taken: it is as large as what is made of it
            precomputed = self._precompute(take(point), point, retries)
            for module in modules:
                loaded = None if layer is None else layer.get_submodule(module)
                yield self._pruned(f"{prefix}{module}.weight", loaded, precomputed)
            del precomputed  # a factor, before the next is made

    def _share_retries(self, point: str, retries: "dict[str, torch.Tensor]") -> None:
        """Let all processes know how often damping was raised at a point."""
        count = self.run.ranks.total(self.damping_retries.get(point, 0))
        if count and point not in self.damping_retries:
            self._note_retries(point, count, retries)

    def _pruned(self, name: str, loaded: "nn.Module | None", precomputed: Any) -> "torch.Tensor":
        """Return a weight [O, I] with zeros, in float32."""
        from prunecli.model.device import device_of

        # what is on the device already is not read again
        known = None if loaded is None else loaded.weight.detach()  # type: ignore[operator]
        weight = self.dense.tensor(name).to(device_of(self.run.compute)) if known is None else known
        assert self.method.sparsify is not None
        pruned: torch.Tensor = self.method.sparsify(
            weight.float(), precomputed, self.pattern, self.options
        )
        return pruned

    def _put(self, name: str, loaded: "nn.Module | None", pruned: "torch.Tensor") -> "torch.Tensor":
        """Return a pruned weight as it is stored; put it into the `loaded` linear."""
        from prunecli.model.stream import put

        stored = pruned.to(torch_dtype(self.dense.specs[name].dtype))
        if loaded is not None:
            put(loaded, pruned if self.options["compat"] else stored, self.run.compute)
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
        if isinstance(precomputed, torch.Tensor) and bool(precomputed.isnan().any()):
            raise InputError(
                f"the statistics of '{point}' make the scores of '{self.method.name}' NaN",
                "make them again with `prunecli calibrate`",
            )
        if isinstance(precomputed, dict) and int(precomputed.get("retries", 0)):
            self._note_retries(point, int(precomputed["retries"]), retries)
        return precomputed

    def _note_retries(self, point: str, count: int, retries: "dict[str, torch.Tensor]") -> None:
        import torch

        self.damping_retries[point], retries[point] = count, torch.tensor(count)
        self.run.report.info(f"{point}: damping was raised tenfold {count} times")


def _take(statistics: "dict[str, torch.Tensor]", point: str) -> "dict[str, torch.Tensor]":
    """Return the statistics of one point, by their own names, and hold them no more."""
    taken = at_point(statistics, point)
    for name in taken:
        del statistics[f"{point}.{name}"]
    return taken
