"""The library verb `calibrate`: statistics of the dense model, layer by layer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunecli.errors import UsageError
from prunecli.files.artefact import write_tensor_file as _write
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import (
    Spec,
)
from prunecli.methods import registry
from prunecli.methods._base import Method, RequiredStatistic
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import check_device, settled
from prunecli.pruning.calibration import Calibration, check_file, read_tokens
from prunecli.pruning.sizes import resolve_sizes
from prunecli.report import SILENT, Report
from prunecli.settings import Amount, Compute, Data, Output, Result

if TYPE_CHECKING:
    import torch

    from prunecli.data.windows import Tokens


def union(methods: list[Method], compat: bool) -> tuple[RequiredStatistic, ...]:
    """Return every statistic that any of these methods reads, each once."""
    needs = (need for method in methods for need in method.needed(compat))
    pairs = {(need.name, point) for need in needs for point in need.points}
    return tuple(
        RequiredStatistic(name, tuple(sorted(point for found, point in pairs if found == name)))
        for name in sorted({collector for collector, _ in pairs})
    )


def skipped(methods: list[Method], amount: Amount, checkpoint: Checkpoint) -> int | None:
    """Return how many layers go, where a method must know that before it can calibrate."""
    gone = set()
    for method in methods:
        if of_amount(method):
            if amount == Amount():
                raise UsageError(
                    f"'{method.name}' tries out what it removes",
                    "say how many with --ratio or --layers",
                )
            kept = resolve_sizes(method, method.resolve({}), amount, checkpoint.arch).layers
            gone.add(checkpoint.arch.layers - kept)
    if amount != Amount() and not gone:
        raise UsageError("the statistics of these methods do not depend on an amount")
    # an amount means the same number of layers for all
    return gone.pop() if gone else None


def of_amount(method: Method) -> bool:
    """Return whether what a method reads depends on how many layers go."""
    from prunecli.pruning.stats.models import OF_MODELS

    return any(OF_MODELS[name].of_amount for name in _of_models(method.needs))


def collect(
    checkpoint: Checkpoint,
    found: "Tokens",
    needs: tuple[RequiredStatistic, ...],
    skip: int | None,
    compute: Compute,
    report: Report,
) -> "Iterator[dict[str, torch.Tensor]]":
    """Yield statistics of the dense model, layer by layer, and last those of whole models."""
    from prunecli.model import stream
    from prunecli.pruning.stats import _hooks, gradients
    from prunecli.pruning.stats.models import OF_MODELS

    runner = stream.LayerStream(checkpoint, compute, report)
    of_gradients = _of_gradients(needs)
    of_layers = tuple(
        need for need in needs if need.points != ("model",) and need.name not in of_gradients
    )
    if of_layers:
        yield from _hooks.dense(runner, found.ids, of_layers)
    if of_gradients:
        yield gradients.gradients(runner, found.ids, of_gradients)
    for name in _of_models(needs):
        whole = OF_MODELS[name]
        assert skip is not None or not whole.of_amount, "skipped() was asked"
        yield {whole.name(name, skip or 0): whole.of(runner, found.ids, skip or 0)}


def _of_gradients(needs: tuple[RequiredStatistic, ...]) -> list[str]:
    from prunecli.pruning.stats.gradients import OF_GRADIENTS

    return [need.name for need in needs if need.name in OF_GRADIENTS]


def _of_models(needs: tuple[RequiredStatistic, ...]) -> list[str]:
    return [need.name for need in needs if need.points == ("model",)]


def write_stats(
    out: str,
    checkpoint: Checkpoint,
    digest: str,
    methods: list[Method],
    source: Calibration,
    *,
    skip: int | None,
    compat: bool,
    compute: Compute,
    output: Output,
    report: Report,
) -> Result:
    """Collect what `methods` read into a file; memory holds the statistics of one layer."""
    needs = union(methods, compat)
    options = {
        "statistics": {need.name: list(need.points) for need in needs},
        "skip": skip,
        "dtype": compute.dtype,
    }
    found = source.found
    assert found is not None, "statistics come from tokens"
    extra = {}
    for name in _of_gradients(needs):
        from prunecli.pruning.stats.gradients import OF_GRADIENTS

        for part, length in OF_GRADIENTS[name].lengths(checkpoint.arch).items():
            for i in range(checkpoint.arch.layers):
                extra[f"{checkpoint.arch.point(i, 'block')}.{part}"] = Spec("F64", (length,))
    from prunecli.pruning.stats.models import OF_MODELS

    for name in _of_models(needs):
        whole, gone = OF_MODELS[name], skip or 0
        extra[whole.name(name, gone)] = Spec("F64", whole.shape(checkpoint.arch, gone))
    return _write(
        out,
        lambda: collect(checkpoint, found, needs, skip, compute, report),
        SidecarBuilder("calibrate", output.argv),
        output,
        kind="stats",
        options=options,
        inputs=[checkpoint.as_input(digest), *source.inputs],
        calibration=source.calibration,
        compute=compute,
        depth=checkpoint.arch.layers,
        extra=extra,
    )


def calibrate(
    model: str,
    out: str,
    *,
    methods: list[str],
    data: Data | None = None,
    amount: Amount | None = None,
    compat: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Collect what `methods` read, of the dense model on D, into OUT.safetensors.

    `amount` is for methods that try what they remove (minitron-depth).
    Raises UsageError, InputError, OutputExists.
    """
    compute, output = compute or Compute(), output or Output()
    check_device(compute)
    chosen = [registry.get(name) for name in methods]
    for method in chosen:
        if not method.needed(compat):
            raise UsageError(f"'{method.name}' reads no statistics, there is nothing to calibrate")
    if compat and union(chosen, True) == union(chosen, False):
        raise UsageError(
            "--compat official changes nothing: the statistics of "
            f"{', '.join(method.name for method in chosen)} are the same",
            "leave it out",
        )
    checkpoint = Checkpoint(model, report)
    check_file(out, output, checkpoint)
    skip = skipped(chosen, amount or Amount(), checkpoint)
    compute = settled(compute, checkpoint)
    source = read_tokens(checkpoint, data or Data(), report)
    return write_stats(
        out,
        checkpoint,
        checkpoint.digest(report),
        chosen,
        source,
        skip=skip,
        compat=compat,
        compute=compute,
        output=output,
        report=report,
    )


def merged(parts: "Iterator[dict[str, torch.Tensor]]") -> "dict[str, torch.Tensor]":
    """Return all parts in one dictionary."""
    return {name: tensor for part in parts for name, tensor in part.items()}
