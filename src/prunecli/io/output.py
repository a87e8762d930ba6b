"""Where results go: checked before any work, written to a temporary sibling, renamed at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunecli.errors import InputError, OutputExists, PruneError
from prunecli.io import sidecar
from prunecli.settings import Made, Output


def check_place(out: str, output: Output, inputs: list[Path]) -> None:
    """Refuse an OUT that is one of the inputs or lies inside one, or exists without --force.

    Raises InputError or OutputExists. Even --force only replaces what prunecli made.
    """
    if not out.strip():
        raise InputError("OUT is empty", "name the output")
    place = Path(out).resolve()
    for path in inputs:
        source = path.resolve()
        if place == source:
            raise InputError(f"OUT '{out}' is the input itself", "choose another OUT")
        if source.is_dir() and source in place.parents:
            raise InputError(f"OUT '{out}' lies inside the input", "choose another OUT")
        if place in source.parents:
            raise InputError(f"OUT '{out}' contains the input", "choose another OUT")
    for parent in place.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"OUT '{out}' lies under '{parent.name}', which is a file")
            break
    if not occupied(place) or output.skip_existing:
        return
    if not output.force:
        raise OutputExists(f"OUT '{out}' exists", "use --force, or --skip-existing, or move it")
    if not sidecar.path_of(place).exists():
        raise OutputExists(f"OUT '{out}' exists and was not made by prunecli", "move it away")


def occupied(place: Path) -> bool:
    """Return whether something is there that must not be lost (an empty folder is nothing)."""
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def same_already(out: str, output: Output, key: str) -> Made | None:
    """Return what lies at OUT if --skip-existing asks and its key is `key`.

    Raises OutputExists if something else lies there.
    """
    place = Path(out)
    if not output.skip_existing or not occupied(place):
        return None
    found = sidecar.read_if_any(place)
    if found is None or found.id != key:
        raise OutputExists(
            f"OUT '{out}' exists and was made from other inputs or options", "use --force"
        )
    return Made(out, found.dump(), found.results)


def check_disk(out: str, needed: int) -> None:
    """Raise InputError if the disk of OUT has fewer than `needed` bytes free."""
    place = Path(out).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"too little disk for '{out}': needs {needed / 1e9:.2f} GB, free {free / 1e9:.2f} GB",
            "free some space or choose another disk",
        )


@contextmanager
def staged(out: str) -> Iterator[Path]:
    """Yield a temporary sibling of OUT, which becomes OUT by rename when the block succeeds.

    The block makes a file or a folder there. On any failure it is removed, and OUT is untouched.
    """
    place = Path(out).resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        if place.is_dir():
            old = place.with_name(f".{place.name}.{os.getpid()}.old")
            place.rename(old)
            temporary.rename(place)
            remove(old)
        else:
            temporary.replace(place)
        _sync(place.parent)
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file and flush it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(out: str, text: str) -> None:
    """Write a JSON artefact, which is its own sidecar, by rename."""
    with staged(out) as temporary:
        write_text(temporary, text)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if not path.exists():
        raise PruneError(f"nothing was written for '{path.name}'")
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
