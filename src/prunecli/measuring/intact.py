"""Whether files are as they were written: seals, the headers of tensor files, the index."""

from collections.abc import Iterator
from pathlib import Path

from prunecli.files import seal, sidecar, strict
from prunecli.files.provenance import integrity_error
from prunecli.files.sidecar import Sidecar
from prunecli.files.tensorfile import is_marked, layout, read_header
from prunecli.model.checkpoint import INDEX, ONE_FILE


def record_faults(artefact: Path, record: Sidecar) -> Iterator[str]:
    """Yield what has changed in an artefact's sidecar, or in the files that it seals."""
    path = sidecar.path_of(artefact)
    sealed, found = record.run.digest, seal.of_record(strict.read_object(path))
    if sealed not in (None, found):
        yield f"the sidecar {path.name} was changed after it was written (digest differs)"
    if error := integrity_error(record):
        yield f"the sidecar {path.name} contradicts itself: {error}"
    for name, digest in record.run.files.items() if artefact.is_dir() else ():
        yield from _file_faults(artefact, name, digest)


def _file_faults(folder: Path, name: str, digest: str) -> Iterator[str]:
    path = folder / name
    # the name is the sidecar's, which may come from anybody
    if not path.resolve().is_relative_to(folder.resolve()):
        yield f"the sidecar names a file outside the folder: '{name}'"
    elif not path.is_file():
        yield f"'{name}' is missing"
    elif seal.of_file(path) != digest:
        yield f"'{name}' is not what was written (digest differs)"


def header_faults(path: Path) -> Iterator[str]:
    """Yield whether a file of tensors begins otherwise than prunecli writes it."""
    start, _ = layout(read_header(path), is_marked(path))
    with path.open("rb") as file:
        if file.read(len(start)) != start:
            yield f"the header of '{path.name}' is not what was written"


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a model's weights, as transformers chooses them."""
    if (folder / ONE_FILE).exists():
        return [folder / ONE_FILE]
    return [folder / file for file in sorted(set(_index(folder).values()))]


def _index(folder: Path) -> dict[str, str]:
    weight_map = strict.read_object(folder / INDEX)["weight_map"]
    return {str(name): str(file) for name, file in weight_map.items()}


def index_faults(folder: Path) -> Iterator[str]:
    """Yield where the index of a sharded model is not what the headers of its shards say."""
    files = weight_files(folder)
    if files == [folder / ONE_FILE]:
        return
    claimed = _index(folder)
    found = {name: file.name for file in files for name in read_header(file)}
    names = sorted(claimed.keys() | found.keys())
    wrong = [name for name in names if claimed.get(name) != found.get(name)]
    if wrong:
        name, more = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield (
            f"{INDEX} is not what the shards hold: of '{name}'{more} it says "
            f"'{claimed.get(name, 'nothing')}', found '{found.get(name, 'nowhere')}'"
        )
