"""What statistics and scores are computed on: windows of tokens, or a file of an earlier step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.data import windows
from prunecli.errors import InputError, UsageError
from prunecli.files import output as place
from prunecli.files import regular, sidecar
from prunecli.files.sidecar import Input, Kind
from prunecli.files.tensorfile import TensorFile, Tensors
from prunecli.methods._base import Method
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, home
from prunecli.pruning import shapes
from prunecli.report import Report
from prunecli.settings import Data, Output

if TYPE_CHECKING:
    import torch

    from prunecli.data.windows import Tokens

PRODUCERS = {"stats": "calibrate", "scores": "score"}


@dataclass(frozen=True)
class Calibration:
    """Where a step's statistics or scores come from, known before anything is computed.

    Attributes:
        inputs: what sidecars record of it.
        num_tokens: how many tokens of text it stands for.
        windows: tokens [N, T], yet to be run through the model; or
        tensors: those of a file: statistics, or scores.
        options: what the file was made with.
    """

    inputs: list[Input]
    num_tokens: int = 0
    windows: "Tokens | None" = None
    tensors: Tensors | None = None
    options: Mapping[str, Any] | None = None


def read_windows(checkpoint: Checkpoint, data: Data, report: Report) -> Calibration:
    """Read the windows of DATA that are to be run through this model."""
    read = windows.load(
        data,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="calibration",
        report=report,
    )
    entry = sidecar.tokens_input("calibration", read.meta, read.windows)
    return Calibration([entry], read.ids.numel(), windows=read)


class _Outputs(sidecar.Part):
    digest: str


class _Results(sidecar.Part):
    calibration_tokens: int = 0


class Given(TensorFile):
    """The tensors of a file of statistics or scores: numbers, which come from anywhere.

    One is looked at when it is asked for. Raises InputError for NaN, and for infinity in sums over
    what a point has seen: losses can be infinite, and so is the score of what must stay.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        super().__init__(path)
        self.kind = kind

    def __getitem__(self, name: str) -> "torch.Tensor":
        """Return a tensor."""
        tensor = super().__getitem__(name)
        if tensor.numel() and tensor.is_floating_point():
            least, greatest = tensor.aminmax()
            if bool(least.isnan()):
                raise self.damaged(name, "NaN")
            if ":" in name and not bool(least.isfinite() & greatest.isfinite()):
                raise self.damaged(name, "infinity")
        return tensor

    def damaged(self, name: str, what: str) -> InputError:
        """Return the refusal of numbers that there cannot be."""
        return InputError(
            f"'{self.path}': '{name}' has {what}",
            f"make it again with `prunecli {PRODUCERS[self.kind]}`",
        )


def check_scores(scores: Mapping[str, "torch.Tensor"], statistics: Tensors) -> None:
    """Raise InputError where scores that are made of a file of statistics have NaN."""
    if isinstance(statistics, Given):
        for name, tensor in scores.items():
            if bool(tensor.isnan().any()):
                raise statistics.damaged(name, "numbers that make the score NaN")


def open_file(path: str, kind: Kind, digest: str) -> Calibration:
    """Open a file of statistics or scores made from the model with this digest.

    Raises InputError if it is of another kind, of another model, or damaged.
    """
    file = Path(path)
    if not regular.is_file(file):
        raise InputError(f"no such file: '{path}'", f"make it with `prunecli {PRODUCERS[kind]}`")
    record = sidecar.read(file, (kind,))
    roles = {entry.role: entry for entry in record.inputs}
    if "model" not in roles or roles["model"].digest != digest:
        raise InputError(f"'{path}' was made from another model", "make it again from this one")
    outputs = sidecar.part(path, record.outputs, _Outputs)
    inputs = [Input(role=kind, id=record.id, digest=outputs.digest)]
    if "calibration" in roles:
        inputs.append(roles["calibration"])
    num_tokens = sidecar.part(path, record.results, _Results).calibration_tokens
    return Calibration(inputs, num_tokens, tensors=Given(file, kind), options=record.options)


def open_statistics(
    path: str, checkpoint: Checkpoint, digest: str, method: Method, compat: bool
) -> Calibration:
    """Open a file of statistics; raise InputError unless it holds what `method` reads."""
    calibration = open_file(path, "stats", digest)
    assert isinstance(calibration.tensors, TensorFile)
    for need in method.needed(compat):
        expected = shapes.of_statistics(calibration.tensors, [need], checkpoint.arch)
        official = " --compat official" if need.compat else ""
        remedy = f"run `prunecli calibrate --for {method.name}{official}`"
        shapes.check(path, calibration.tensors, expected, remedy)
    return calibration


def open_scores(path: str, arch: Arch, digest: str, method: Method) -> Calibration:
    """Open a file of a method's scores; raise InputError unless it holds all of them."""
    calibration = open_file(path, "scores", digest)
    assert isinstance(calibration.tensors, TensorFile)
    expected = shapes.of_scores(calibration.tensors, method, arch)
    shapes.check(path, calibration.tensors, expected, f"score again by {method.name}")
    return calibration


def check_tensor_file(output: Output, model: str) -> None:
    """Check that OUT.safetensors, of IN, can be written.

    Raises UsageError, or what `check_path` does.
    """
    if not output.path.endswith(".safetensors"):
        raise UsageError(f"OUT '{output.path}' must end in .safetensors")
    place.check_path(output.path, output, [home(model)])
    place.check_beside(output.path)
