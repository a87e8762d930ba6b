"""Where results go: checked before any work, written to a temporary sibling, renamed at the end."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunecli.errors import InputError, OutputExists, PruneError
from prunecli.files import sidecar
from prunecli.settings import Output, Result

MARK = "key"
LOGS = ".jsonl"
SUFFIX = 24  # bytes that names of what is made beside OUT are longer than its own, at most


def check_place(out: str, output: Output, inputs: Sequence[Path | None]) -> None:
    """Refuse an OUT that is one of the inputs or lies inside one, or exists without --force.

    Raises InputError or OutputExists. Even --force only replaces what prunecli made.
    """
    if not out.strip():
        raise InputError("OUT is empty", "name the output")
    place = Path(out).resolve()
    for path in filter(None, inputs):
        source = path.resolve()
        if place == source:
            raise InputError(f"OUT '{out}' is the input itself", "choose another OUT")
        if source.is_dir() and source in place.parents:
            raise InputError(f"OUT '{out}' lies inside the input", "choose another OUT")
        if place in source.parents:
            raise InputError(f"OUT '{out}' contains the input", "choose another OUT")
    _check_above(f"OUT '{out}'", place)
    _check_name(f"OUT '{out}'", place)
    if not occupied(place):
        _check_access(f"OUT '{out}'", place)
        return
    if not (output.force or output.skip_existing):
        raise OutputExists(f"OUT '{out}' exists", "use --force, or --skip-existing, or move it")
    _check_ours(f"OUT '{out}'", place)
    if not output.skip_existing:
        _check_access(f"OUT '{out}'", place)


def check_kept(folder: str, names: Sequence[str], model: Path, out: str) -> None:
    """Refuse to keep these files in `folder` where that harms the input, OUT, or files of others.

    Raises InputError or OutputExists.
    """
    place = Path(folder).resolve()
    for what, other in (("the input", model.resolve()), ("OUT", Path(out).resolve())):
        if place == other or other in place.parents:
            raise InputError(f"--keep '{folder}' lies in {what}", "choose another folder")
    _check_above(f"--keep '{folder}'", place / "file")
    _check_access(f"--keep '{folder}'", place / "file")
    _check_name(f"--keep '{folder}'", place)
    for name in names:
        if occupied(place / name):
            _check_ours(f"'{Path(folder, name)}', which is to be kept,", place / name)


def _check_above(told: str, place: Path) -> None:
    parent = _nearest(place)
    if not parent.is_dir():
        raise InputError(f"{told} lies under '{parent.name}', which is a file")


def _check_access(told: str, place: Path) -> None:
    parent = _nearest(place)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{told} cannot be written: nothing may be made in '{parent}'", "choose another"
        )


def _nearest(place: Path) -> Path:
    """Return the nearest of the folders above that is there."""
    # unlike exists(), lexists() takes names that are too long for any file
    return next(parent for parent in place.parents if os.path.lexists(parent))


def _check_name(told: str, place: Path) -> None:
    """Raise InputError for what is no file or folder, and for names too long to stage under."""
    parent = _nearest(place)
    most = os.pathconf(parent, "PC_NAME_MAX") - SUFFIX
    if any(len(os.fsencode(part)) > most for part in place.relative_to(parent).parts):
        raise InputError(f"{told}: a name of it has more than {most} bytes", "choose a shorter one")
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise InputError(f"{told} is a device or a pipe, expected a file or folder")


def _check_ours(told: str, place: Path) -> None:
    if not sidecar.is_ours(place):
        raise OutputExists(f"{told} exists and was not made by prunecli", "move it away")


def occupied(place: Path) -> bool:
    """Return whether something is there that must not be lost (an empty folder is nothing)."""
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def same_already(out: str, output: Output, key: str) -> Result | None:
    """Return what lies at OUT if --skip-existing asks and its key is `key`.

    Raises OutputExists if something else lies there.
    """
    place = Path(out)
    if not output.skip_existing or not occupied(place):
        return None
    found = sidecar.read(place)
    if found.id != key:
        raise OutputExists(
            f"'{out}' exists and was made from other inputs or options", "use --force"
        )
    return Result(out, found.dump(), found.results)


def check_disk(out: str, needed: int) -> None:
    """Raise InputError if the disk of OUT has fewer than `needed` bytes free.

    What the state of an unfinished run takes counts as free: it is gone on from, or cleared.
    """
    place = Path(out).resolve()
    while not place.exists():
        place = place.parent
    state = sum(path.lstat().st_size for path in partial_of(out).rglob("*"))
    free = shutil.disk_usage(place).free + state
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
        publish(temporary, place)
    finally:
        remove(temporary)


def publish(temporary: Path, place: Path) -> None:
    """Make a complete sibling of `place` take its place, by rename."""
    _sync(temporary)
    if place.is_dir():
        old = place.with_name(f".{place.name}.{os.getpid()}.old")
        place.rename(old)
        temporary.rename(place)
        remove(old)
    else:
        temporary.replace(place)
    _sync(place.parent)


def partial_of(out: str) -> Path:
    """Return where the state of an unfinished run lies."""
    place = Path(out).resolve()
    return place.with_name(f"{place.name}.partial")


def check_partial(out: str, key: str, restart: bool) -> None:
    """Raise OutputExists if OUT.partial is not what a run with this key may go on from or clear."""
    folder = partial_of(out)
    mark = folder / MARK
    if not folder.exists():
        return
    if not folder.is_dir() or (not mark.exists() and any(folder.iterdir())):
        raise OutputExists(f"'{folder.name}' was not made by prunecli", "move it away")
    state = mark.exists() and not restart and _holds(folder, LOGS)
    if state and mark.read_text("utf-8").strip() != key:
        raise OutputExists(
            f"'{folder.name}' is the state of a run with other inputs or options",
            "use --restart to begin anew, or choose another OUT",
        )


@contextmanager
def partial(out: str, key: str, restart: bool) -> Iterator[Path]:
    """Yield OUT.partial, the folder of an unfinished run; it stays when the block fails.

    A folder without anything that a run could go on from is no state: it is taken whatever run it
    belonged to. An empty one is removed when the block fails.
    Raises OutputExists if it belongs to a run with another key, or if that run is still going on.
    `restart` clears what is there.
    """
    folder = partial_of(out)
    check_partial(out, key, restart)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExists(f"another process is at work in '{folder.name}'") from None
        # it may have become another's while it was waited for
        check_partial(out, key, restart)
        mark = folder / MARK
        if restart or not mark.exists() or not _holds(folder, LOGS):
            for path in folder.iterdir():
                remove(path)
            replace_text(mark, key + "\n")
        try:
            yield folder
        finally:
            if folder.exists() and not _holds(folder):
                remove(folder)
    finally:
        os.close(handle)


def _holds(folder: Path, *beside: str) -> bool:
    # hidden files were being written; a log is of use only beside the state that it belongs to
    return any(
        path.name != MARK and path.suffix not in beside and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
