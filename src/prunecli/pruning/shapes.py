"""Which tensors a file of statistics or scores must hold for a model: their names and shapes.

They are compared with the file's header before any is read. Names that end in a number of layers
to remove are as many as there are numbers for which the file was made, one at least.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from prunecli.errors import InputError
from prunecli.files.tensorfile import Spec, TensorFile
from prunecli.methods._base import Method, RequiredStatistic
from prunecli.model.arch import Arch
from prunecli.pruning.stats import registry as statistics
from prunecli.pruning.stats._base import INPUTS, MODEL, Statistic

if TYPE_CHECKING:
    import torch

COMPUTED = ("F64", "F32", "I64")  # types of what is computed here; counts are whole numbers
Shape = tuple[int, ...]


class Expected(NamedTuple):
    """A tensor that is needed; `what` it is for the error where it is not there."""

    name: str
    shape: Shape
    what: str


def of_statistics(
    file: TensorFile, needs: Iterable[RequiredStatistic], arch: Arch
) -> Iterator[Expected]:
    """Yield the tensors that a file must have for the statistics that a method reads."""
    for need in needs:
        record = statistics.get(need.name)
        for point in need.points:
            what = f"{need.name} at {point}"
            if record.depends_on_amount:
                (start,) = record.parts(arch)
                for count in _counts(file, start, arch):
                    yield from (Expected(*one, what) for one in record.shapes(arch, count).items())
                continue
            if record.scope == MODEL:
                yield from (Expected(*one, what) for one in record.shapes(arch, 0).items())
                continue
            for i in range(arch.layers):
                for name, spec in _of_layer(record, arch, i, point).items():
                    yield Expected(name, spec.shape, what)


def of_run(
    needs: Iterable[RequiredStatistic], arch: Arch, count: int, dtype: "torch.dtype"
) -> dict[str, Spec]:
    """Return the tensors of all statistics that a run makes, in a compute type.

    `count` is the number of layers to remove, where one of them depends on it.
    """
    specs: dict[str, Spec] = {}
    for need in needs:
        record = statistics.get(need.name)
        if record.scope == MODEL:
            specs |= record.specs(arch, "", count)
        for i, point in product(range(arch.layers), need.points if record.scope != MODEL else ()):
            specs |= _of_layer(record, arch, i, point, dtype)
    return specs


def _of_layer(
    record: Statistic, arch: Arch, i: int, point: str, dtype: "torch.dtype | None" = None
) -> dict[str, Spec]:
    """Return the tensors of a statistic of layer `i` at a point, of whatever is called so there."""
    if record.scope != INPUTS:
        return record.specs(arch, arch.block(i), i)
    return {
        f"{place.name}.{name}": spec
        for place in arch.places(i, point)
        for name, spec in record.observed(place.width, dtype).items()
    }


def of_scores(file: TensorFile, method: Method, arch: Arch) -> Iterator[Expected]:
    """Yield the tensors that a file of a method's scores must have."""
    layers = range(arch.layers)
    for axis in method.axes:
        if axis == "layers" and method.selection == "block":
            for count in _counts(file, "blocks", arch):
                yield Expected(f"blocks.{count}", (arch.layers - count + 1,), axis)
        elif axis == "layers":
            yield Expected("layers", (arch.layers,), axis)
        elif axis == "hidden":
            yield Expected("hidden", (arch.hidden,), axis)
        else:
            unit = {"heads": "kv_heads"}.get(axis, axis)
            for i in arch.ranked(unit):
                yield Expected(f"{unit}.{i}", (arch.size(unit, i),), axis)
    if method.rotates:
        yield Expected("rotation", (arch.hidden, arch.hidden), "a rotation")
    if method.compensates:
        for i in layers:
            for point in ("o", "down"):
                if arch.module(point) in arch.compensated_in(i):
                    (place,) = arch.places(i, point)
                    yield Expected(f"{place.name}.mean", (place.width,), "means for biases")


def check(path: str, file: TensorFile, expected: Iterable[Expected], remedy: str) -> None:
    """Raise InputError unless a file has all these tensors, of these shapes."""
    for name, shape, what in expected:
        spec = file.specs.get(name)
        if spec is None:
            raise InputError(f"'{path}' lacks {what}: it has no '{name}'", remedy)
        if spec.dtype not in COMPUTED or spec.shape != shape:
            raise InputError(
                f"'{path}': '{name}' is {spec.dtype} {list(spec.shape)}, expected numbers "
                f"{list(shape)}",
                remedy,
            )


def _counts(file: TensorFile, start: str, arch: Arch) -> list[int]:
    """Return for which numbers of layers to remove a file has such a tensor, 1 if for none."""
    return [count for count in range(1, arch.layers) if f"{start}.{count}" in file.specs] or [1]
