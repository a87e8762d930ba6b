"""What statistics and scores are computed on: windows of tokens, or files of an earlier step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.data import windows
from prunecli.errors import InputError, UsageError
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import Input, Kind
from prunecli.files.tensorfile import (
    TensorFile,
    Tensors,
)
from prunecli.methods._base import Method
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Data, Output

MAKERS = {"stats": "calibrate", "scores": "score"}


@dataclass
class Calibration:
    """Where a step's statistics or scores come from, known before anything is computed.

    Either `tensors` of a file, or `found`, tokens that are yet to be run through the model.
    `inputs` and `calibration` (a number of tokens) are what sidecars say of it.
    """

    inputs: list[Input]
    calibration: int = 0
    tensors: Tensors | None = None
    found: "windows.Tokens | None" = None
    options: Mapping[str, Any] | None = None


def open_source(path: str, kind: Kind, digest: str) -> Calibration:
    """Open a file of statistics or scores made from the model with this digest.

    Raises InputError if it is of another kind, of another model, or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no such file: '{path}'", f"make it with `prunecli {MAKERS[kind]}`")
    record = sidecar.read(file, (kind,))
    roles = {entry.role: entry for entry in record.inputs}
    if roles["model"].digest != digest:
        raise InputError(f"'{path}' was made from another model", "make it again from this one")
    inputs = [Input(role=kind, id=record.id, digest=record.outputs["digest"])]
    if "calibration" in roles:
        inputs.append(roles["calibration"])
    calibration = record.results.get("calibration_tokens", 0)
    return Calibration(inputs, calibration, TensorFile(file), options=record.options)


def read_tokens(checkpoint: Checkpoint, data: Data, report: Report) -> Calibration:
    """Read D, to be run through this model."""
    found = windows.load(
        data,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="calibration",
        report=report,
    )
    return Calibration(
        [sidecar.tokens_input("calibration", found.meta, found.windows)],
        found.ids.numel(),
        found=found,
    )


def open_stats(
    path: str, checkpoint: Checkpoint, digest: str, method: Method, compat: bool
) -> Calibration:
    """Open a file of statistics, and make sure that it holds what `method` reads."""
    source = open_source(path, "stats", digest)
    assert source.tensors is not None
    last = checkpoint.arch.layers - 1
    for need in method.needed(compat):
        mark = representative(need.collector, checkpoint.arch)
        for point in need.points:
            start = "" if point == "model" else checkpoint.arch.point(last, point) + "."
            if not any(name.startswith(start + mark) for name in source.tensors):
                raise InputError(
                    f"'{path}' lacks what '{method.name}' needs: {need.collector} at {point}",
                    f"run `prunecli calibrate --for {method.name}"
                    + (" --compat official`" if need.compat else "`"),
                )
    return source


def representative(collector: str, arch: Arch) -> str:
    """Return the name of something that a file with this statistic has at each of its points."""
    from prunecli.pruning.stats import registry as collectors
    from prunecli.pruning.stats.gradients import OF_GRADIENTS
    from prunecli.pruning.stats.models import OF_MODELS

    if collector in OF_MODELS:
        return collector
    if collector in OF_GRADIENTS:
        return next(iter(OF_GRADIENTS[collector].lengths(arch)))
    return collectors.make(collector).yields[-1]


def check_file(out: str, output: Output, checkpoint: Checkpoint) -> None:
    """Check that OUT.safetensors can be written."""
    if not out.endswith(".safetensors"):
        raise UsageError(f"OUT '{out}' must end in .safetensors")
    place.check_path(out, output, [checkpoint.folder])
