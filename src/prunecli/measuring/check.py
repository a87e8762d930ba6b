"""The library verb `check`: is an artefact as its sidecar records it?"""

from pathlib import Path

from prunecli.data import rows
from prunecli.errors import PruneError
from prunecli.files import sidecar
from prunecli.files.tensorfile import combined_digest, read_header, read_tensor, tensor_digest
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.sparsity import faults
from prunecli.report import SILENT, Report


def check(path: str, *, deep: bool = False, report: Report = SILENT) -> list[str]:
    """Return what is wrong with a checkpoint, a folder of rows, a tensor file or a JSON artefact.

    Checks headers, index, names and shapes against config.json, the sidecar and its id in
    config.json, and parameter counts. `deep` reads every byte: there must be no NaN or infinity,
    and the digest, the number of zeros and their pattern must be those in the sidecar.
    """
    try:
        if rows.is_rows(path):
            return _check_rows(path, deep)
        return _check_folder(path, deep, report) if Path(path).is_dir() else _check_file(path, deep)
    except PruneError as error:
        return [str(error)]


def _check_folder(path: str, deep: bool, report: Report) -> list[str]:
    checkpoint = Checkpoint(path)
    problems = []
    record = checkpoint.sidecar
    mark = checkpoint.arch.config.get("prunecli")
    marked = mark.get("id") if isinstance(mark, dict) else None
    if record is None:
        if marked is not None:
            problems.append(
                f"config.json was written by prunecli, but {sidecar.FOLDER_SIDECAR} is missing"
            )
    else:
        if marked != record.id:
            problems.append(f"config.json has id {marked}, the sidecar {record.id}")
        expected = record.outputs.get("params")
        if expected != checkpoint.arch.total_params:
            problems.append(
                f"the sidecar records {expected} parameters, config.json describes "
                f"{checkpoint.arch.total_params}"
            )
    if deep:
        digest = checkpoint.digest(report)
        if record is not None and record.outputs.get("digest") != digest:
            problems.append("the weights are not those of the sidecar (digest differs)")
        problems += faults(checkpoint)
    return problems


def _check_rows(path: str, deep: bool) -> list[str]:
    whole = rows.open_rows(path)
    if deep and whole.scan().hexdigest() != whole.digest:
        return ["the rows are not those of the sidecar (digest differs)"]
    return []


def _check_file(path: str, deep: bool) -> list[str]:
    if path.endswith(".json"):
        sidecar.read(path)
        return []
    specs = read_header(Path(path))
    record = sidecar.read(path)
    problems = []
    if record.outputs.get("tensors") != len(specs):
        problems.append(
            f"the sidecar records {record.outputs.get('tensors')} tensors, found {len(specs)}"
        )
    if deep:
        digests = {name: tensor_digest(read_tensor(Path(path), name)) for name in specs}
        if combined_digest(digests) != record.outputs.get("digest"):
            problems.append("the tensors are not those of the sidecar (digest differs)")
    return problems
