"""The library verb `check`: is an artefact as its sidecar records it?

What it is follows from its sidecar's `kind`; a model folder needs none. Each `_of_` function yields
what is wrong with one kind, the cheapest first.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunecli.data import rows
from prunecli.errors import PruneError, of_memory
from prunecli.files import regular, sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.files.strict import told
from prunecli.files.tensorfile import (
    TENSOR_FILE,
    combined_digest,
    pieces,
    read_header,
    read_tensor,
    tensor_digest,
)
from prunecli.measuring import intact
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.sparsity import faults
from prunecli.report import SILENT, Report

Problems = Iterator[str]


def check(path: str, *, deep: bool = False, report: Report = SILENT) -> list[str]:
    """Return what is wrong with a model folder, a folder of rows, a tensor file or a JSON artefact.

    Checks headers, index, names and shapes against config.json and the sidecar, and parameter
    counts. `deep` reads every byte: transformers, which is slow to load and not asked otherwise,
    must accept config.json; the sidecar must be as it was sealed and follow from its history, files
    must have the digests in it; there must be no NaN, the zeros and their pattern must be those
    recorded, and a model that fits in memory must compute what transformers does.
    Whatever is met on the way is a problem of this path; but OutOfMemory, which says nothing of it,
    is raised.
    """
    problems = []
    try:
        for problem in _problems(path, deep, report):
            problems.append(problem)
    except Exception as error:
        # libraries raise anything on damaged files, and other paths are still to be checked
        if memory := of_memory(error):
            raise memory from error
        problems.append(_told(error))
    return problems


def _told(error: Exception) -> str:
    """Return what an error says of the path that it ended the check of."""
    if isinstance(error, PruneError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return f"cannot be checked: {type(error).__name__}: {error}"


def _problems(path: str, deep: bool, report: Report) -> Problems:
    if rows.is_rows(path) and not regular.exists(path):  # a range of rows, or a tensor in a file
        rows.open_rows(path)
        path = rows.split(path)[0]
        if TENSOR_FILE in path:
            return
    place = _described(Path(path))
    if not regular.exists(place):
        yield "no such file or folder"
        return
    is_model = place.is_dir() and not (place / rows.shard_name(0)).exists()
    record = sidecar.read_if_any(place) if is_model else sidecar.read(place)
    if record is not None and deep:
        yield from intact.record_faults(place, record)
    if place.is_dir():
        yield from (_of_model if is_model else _of_rows)(place, deep, report)
    elif place.suffix == TENSOR_FILE:
        yield from _of_tensors(place, sidecar.read(place, ("stats", "scores")), deep, report)
    elif record is not None and record.kind == "plan":
        yield from _of_plan(record.results)


def _described(path: Path) -> Path:
    """Return what lies beside a sidecar; a path as it is if it is none, or an artefact itself."""
    if path.name == sidecar.FOLDER_SIDECAR and path.is_file():
        return path.parent
    beside = path.with_suffix("")
    return beside if path.suffix == ".json" and beside.suffix == TENSOR_FILE else path


def _of_model(folder: Path, deep: bool, report: Report) -> Problems:
    checkpoint = Checkpoint(str(folder), asked=deep)
    yield from intact.index_faults(folder)
    yield from _of_config(checkpoint)
    if not deep:
        return
    sound = True
    for problem in _of_weights(checkpoint, report):
        sound = False
        yield problem
    if sound:
        from prunecli.measuring import agreement

        yield from agreement.faults(checkpoint, report)


def _of_config(checkpoint: Checkpoint) -> Problems:
    """Yield where the sidecar of a model is not that of its config.json."""
    record, arch = checkpoint.sidecar, checkpoint.arch
    mark = arch.config.get("prunecli")
    marked = mark.get("id") if isinstance(mark, dict) else None
    if record is None:
        if marked is not None:
            yield f"config.json was written by prunecli, but {sidecar.FOLDER_SIDECAR} is missing"
        return
    if marked != record.id:
        yield f"config.json has id {told(marked)}, the sidecar {told(record.id)}"
    recorded = record.outputs.get("params")
    if recorded != arch.total_params:
        yield (
            f"the sidecar records {told(recorded)} parameters, config.json describes "
            f"{arch.total_params}"
        )
    described = {"sizes": arch.sizes, "params_by_group": arch.params()}
    for name, value in described.items():
        if record.results.get(name, value) != value:
            yield f"the sidecar's {name} are not those that config.json describes"


def _of_weights(checkpoint: Checkpoint, report: Report) -> Problems:
    """Yield where weights are not those of the sidecar; reads all of them."""
    record = checkpoint.sidecar
    digest = checkpoint.digest(report)
    if record is not None:
        if record.outputs.get("digest") != digest:
            yield "the weights are not those of the sidecar (digest differs)"
        yield from _of_wrapper(checkpoint, record)
        for file in intact.weight_files(checkpoint.folder):
            yield from intact.header_faults(file)
    yield from faults(checkpoint, report)


def _of_wrapper(checkpoint: Checkpoint, record: Sidecar) -> Problems:
    """Yield whether other parts of a multimodal model are not those of the sidecar."""
    recorded, wrapper = record.outputs.get("wrapper"), checkpoint.wrapper()
    if not isinstance(recorded, dict):
        return
    if wrapper is None or recorded.get("digest") != wrapper.digest():
        yield "the parts around the language model are not those of the sidecar (digest differs)"


def _of_rows(folder: Path, deep: bool, report: Report) -> Problems:
    whole = rows.open_rows(str(folder))
    if not deep:
        return
    found = whole.scan()
    if found.hexdigest() != whole.digest:
        yield "the rows are not those of the sidecar (digest differs)"
    if found.max_id != whole.max_id:
        yield f"the sidecar records {whole.max_id} as the largest id, found {found.max_id}"


def _of_tensors(path: Path, record: Sidecar, deep: bool, report: Report) -> Problems:
    """Yield what is wrong with a file of statistics or scores."""
    specs = read_header(path)
    recorded = record.outputs.get("tensors")
    if recorded != len(specs):
        yield f"the sidecar records {told(recorded)} tensors, found {len(specs)}"
    if not deep:
        return
    yield from intact.header_faults(path)
    digests = {}
    with report.reading("reading tensors", sum(spec.bytes for spec in specs.values())) as passed:
        for name, spec in specs.items():
            tensor = read_tensor(path, name)
            digests[name] = tensor_digest(tensor)
            # infinity is the score of what must stay
            if any(bool(piece.isnan().any()) for piece in pieces(tensor)):
                yield f"'{name}' has NaN"
            passed(spec.bytes)
    if combined_digest(digests) != record.outputs.get("digest"):
        yield "the tensors are not those of the sidecar (digest differs)"


def _of_plan(results: Mapping[str, Any]) -> Problems:
    """Yield the axes of a plan whose indices are no indices, or not as many as it records."""
    keep, kept = results.get("keep"), results.get("kept")
    if not isinstance(keep, dict) or not isinstance(kept, dict):
        yield "it keeps nothing: 'keep' or 'kept' is missing in its results"
        return
    for axis, value in keep.items():
        if value is None:
            continue
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], list)
        lists = value if nested else [value]
        if not all(_are_whole(one) for one in lists):
            yield f"its {axis} are no indices"
            continue
        # the list of a layer that has none of an axis is empty
        even = all(one == sorted(set(one)) and min(one, default=0) >= 0 for one in lists)
        if not (even and any(lists)):
            yield f"its {axis} are not ascending and unique indices"
        sizes, recorded = [len(one) for one in lists], kept.get(axis)
        each = recorded if isinstance(recorded, list) else [recorded] * len(sizes)
        if len(each) != len(sizes) or not all(map(_counted, sizes, each)):
            yield f"it keeps {told(sizes)} {axis}, and records {told(recorded)}"


def _counted(size: int, recorded: Any) -> bool:
    """Return whether a layer that keeps so many units can be recorded so; a wide one is several."""
    if size == 0:
        return recorded is not None
    if type(recorded) is not int or recorded < 1:
        return False
    times = -(-size // recorded)
    return -(-size // times) == recorded


def _are_whole(values: Any) -> bool:
    """Return whether these are whole numbers in a list."""
    return isinstance(values, list) and all(type(value) is int for value in values)
