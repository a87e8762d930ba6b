"""The end of every verb that makes a file of tensors."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import Input, Kind, SidecarBuilder
from prunecli.files.tensorfile import (
    Spec,
    TensorWriter,
    combined_digest,
    spec_of,
)
from prunecli.settings import BATCH_TOKENS, Compute, Output, Result

if TYPE_CHECKING:
    import torch


def write_tensor_file(
    out: str,
    make: "Callable[[], Iterator[dict[str, torch.Tensor]]]",
    recorder: SidecarBuilder,
    output: Output,
    *,
    kind: Kind,
    options: dict[str, Any],
    inputs: list[Input],
    calibration: int,
    compute: Compute,
    depth: int = 1,
    extra: Mapping[str, Spec] | None = None,
) -> Result:
    """Write the tensors that `make()` yields: one part for each of `depth` layers, then `extra`.

    The first part tells the layout of all, so that no more than one is held.
    """
    if same := place.same_already(out, output, sidecar.key(kind, options, inputs)):
        return same
    if output.dry_run:
        return Result(out, results=options)
    parts = make()
    first = next(parts)
    specs = {
        name.replace("model.layers.0", f"model.layers.{i}", 1): spec_of(tensor)
        for i in range(depth)
        for name, tensor in first.items()
    } | dict(extra or {})
    place.check_disk(out, sum(spec.bytes for spec in specs.values()))
    with place.staged(out) as temporary:
        with TensorWriter(temporary, specs) as writer:
            for part in chain([first], parts):
                for name, tensor in part.items():
                    writer.write(name, tensor)
        # with --force: no moment at which an old sidecar describes new tensors
        sidecar.path_of(out).unlink(missing_ok=True)
    record = recorder.sidecar(
        kind,
        options,
        inputs,
        outputs={"digest": combined_digest(writer.digests), "tensors": len(specs)},
        results={"calibration_tokens": calibration},
        calibration=calibration,
        device=compute.device,
        dtype=compute.dtype,
        batch=BATCH_TOKENS,
    )
    place.write_json(str(sidecar.path_of(out)), record.text())
    return Result(out, record.dump(), record.results)
