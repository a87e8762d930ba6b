"""Sidecars from files and folders as plain data: models, measurements of them, searches.

A checkpoint's sidecar records how it was made, an evaluation's what was measured. The two are
matched by the model's id or, for models from elsewhere, by the digest of their weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunecli.errors import InputError
from prunecli.files import provenance, regular, sidecar, strict
from prunecli.files.sidecar import HistoryStep, Sidecar
from prunecli.model.checkpoint import Checkpoint

Checkpoints = Mapping[str, tuple[Path, Sidecar]]


@dataclass(frozen=True)
class Models:
    """What lies in some files and folders.

    Attributes:
        checkpoints: checkpoint sidecars by id, each with its path.
        measurements: evaluations and speeds, each with its path and the id of its model (None: not
            among `checkpoints`).
        searches: sidecars of searched architectures. plans: the files of plans.
        integrity_errors: why the sidecar of a model cannot be believed, by id.
    """

    checkpoints: Checkpoints = field(default_factory=dict)
    measurements: list[tuple[Path, Sidecar, str | None]] = field(default_factory=list)
    searches: list[Sidecar] = field(default_factory=list)
    integrity_errors: Mapping[str, str] = field(default_factory=dict)
    plans: list[Path] = field(default_factory=list)

    def evaluations(self) -> Iterator[tuple[Path, Sidecar, str | None]]:
        """Yield the sidecars made by `eval`."""
        return (entry for entry in self.measurements if entry[1].kind == "eval")

    def name(self, key: str) -> str:
        """Return what the model of this id is called."""
        return name_of(self.checkpoints[key][0])


def collect(paths: list[str]) -> Models:
    """Collect sidecars from files and from folders, which are searched to any depth.

    Raises InputError for a path without any sidecar, or one that is damaged.
    """
    sidecars = [entry for path in paths for entry in records_of(path)]
    checkpoints: dict[str, tuple[Path, Sidecar]] = {}
    for path, record in sidecars:
        if record.kind == "checkpoint":
            checkpoints.setdefault(record.id, (path, record))
    for path, record in sidecars:
        if record.kind == "eval" and (model := _model_of(record)) is not None:
            checkpoints.setdefault(model.id, (path, model))
    by_digest = {record.outputs.get("digest"): key for key, (_, record) in checkpoints.items()}
    measurements: list[tuple[Path, Sidecar, str | None]] = []
    for path, record in sidecars:
        if record.kind in ("eval", "speed"):
            of = record.inputs[0]
            key = of.id if of.id in checkpoints else by_digest.get(of.digest)
            measurements.append((path, record, key))
    errors = {key: _integrity_error(checkpoints, key) for key in checkpoints}
    return Models(
        checkpoints,
        measurements,
        [record for _, record in sidecars if record.kind == "arch"],
        {key: error for key, error in errors.items() if error},
        [path for path, record in sidecars if record.kind == "plan"],
    )


def records_of(given: str) -> list[tuple[Path, Sidecar]]:
    """Return the sidecars of a file or folder with their paths.

    Raises InputError if there are none.
    """
    path = Path(given)
    if not regular.exists(path):
        raise InputError(f"no such file or folder: '{given}'")
    if not regular.is_dir(path):
        return [(path, sidecar.read(path))]
    records = []
    for file in sorted(path.rglob("*.json")):
        try:
            content = strict.read_object(file)
        except (FileNotFoundError, InputError):
            continue
        if "made_by" in content and "kind" in content:
            records.append((file, sidecar.read(file)))
    if not records:
        raise InputError(
            f"no sidecar in '{given}'",
            "give files or folders made by prunecli, as `prunecli eval --out FILE.json` does",
        )
    return records


def _model_of(record: Sidecar) -> Sidecar | None:
    """Return the sidecar of an evaluated model as the evaluation records it.

    None for a model without a history.
    """
    model, results = record.inputs[0], record.results.get("model")
    if model.id is None or not results or len(record.history) < 2:
        return None
    last = record.history[-2]
    return record.model_copy(
        update={
            "kind": "checkpoint",
            "id": model.id,
            "made_by": record.made_by.model_copy(update={"command": last.command}),
            "options": last.options,
            "inputs": last.inputs,
            "outputs": {"digest": model.digest},
            "results": results,
            "history": record.history[:-1],
        }
    )


def _integrity_error(checkpoints: Checkpoints, key: str) -> str:
    """Return what is not so in a model's sidecar, or nothing."""
    path, record = checkpoints[key]
    if error := provenance.integrity_error(record):
        return error
    for step in record.history[:-1]:
        # the same steps as the ancestor itself records them
        if step.id in checkpoints and _differ(checkpoints[step.id][1].history[-1], step):
            return f"its history differs from that of '{name_of(checkpoints[step.id][0])}'"
    digest = record.outputs.get("digest")
    if _weights_are_newer(path) and Checkpoint(str(path.parent)).digest() != digest:
        return "its weights are not those of its sidecar (digest)"
    return ""


def _differ(one: HistoryStep, other: HistoryStep) -> bool:
    """Return whether two records of a step differ in more than the hub that its inputs are from."""
    bare, same = (step.model_copy(update={"inputs": []}) for step in (one, other))
    return bare != same or sidecar.hashed(one.inputs) != sidecar.hashed(other.inputs)


def _weights_are_newer(path: Path) -> bool:
    """Return whether weights are newer than their sidecar, which is always written last."""
    if path.name != sidecar.FOLDER_SIDECAR:
        return False
    written = path.stat().st_mtime
    return any(file.stat().st_mtime > written for file in path.parent.glob("*.safetensors"))


def name_of(path: Path) -> str:
    """Return what a model is called: its folder's name, or that of a file's stem."""
    return path.parent.name if path.name == sidecar.FOLDER_SIDECAR else path.stem
