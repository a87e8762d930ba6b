"""Files that others wrote: regular ones only, of bounded size, in the folder that they came in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISCHR, S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG, S_ISSOCK
from typing import BinaryIO

from prunecli.errors import InputError
from prunecli.interruption import safe_point

MAX_BYTES = 100_000_000
KINDS = (
    (S_ISDIR, "a folder"),
    (S_ISFIFO, "a pipe"),
    (S_ISCHR, "a device"),
    (S_ISSOCK, "a socket"),
    (S_ISLNK, "a link"),
)


def opened(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes; the caller closes it.

    A pipe is never waited for and a device never read. Raises InputError for them and for what
    cannot be opened, FileNotFoundError where nothing is there.
    """
    safe_point()
    try:
        # without O_NONBLOCK a pipe that nobody writes to is waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    mode = os.fstat(descriptor).st_mode
    if S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"'{path}' is {_kind(mode)}, expected a file")


def content(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises InputError for more than `most`, and for what `opened` refuses; FileNotFoundError where
    nothing is there.
    """
    with opened(path) as file:
        try:
            found = file.read(most + 1)
        except OSError as error:
            raise unreadable(path, error) from None
    if len(found) > most:
        raise InputError(f"'{path}' has more than {most / 1e6:g} MB, too much for such a file")
    return found


def exists(path: str | Path) -> bool:
    """Return whether something is at a path; raise InputError where that cannot be known."""
    return _mode(path) is not None


def is_file(path: str | Path) -> bool:
    """Return whether a path is a regular file; raise InputError where that cannot be known."""
    mode = _mode(path)
    return mode is not None and S_ISREG(mode)


def is_dir(path: str | Path) -> bool:
    """Return whether a path is a folder; raise InputError where that cannot be known."""
    mode = _mode(path)
    return mode is not None and S_ISDIR(mode)


def is_own(path: Path, most: int = MAX_BYTES) -> bool:
    """Return whether `content` reads a path that is a file itself, and no link to one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return S_ISREG(found.st_mode) and found.st_size <= most and os.access(path, os.R_OK)


def _mode(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        # too long a name, no name at all, or in a folder that may not be searched
        raise unreadable(path, error) from None


def resolved(path: str | Path) -> Path:
    """Return a path as it is without links; raise InputError for a link to itself."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError):
        raise InputError(f"'{path}' is a link to itself", "remove it, or choose another") from None


def inside(folder: Path, path: Path) -> Path:
    """Return a path in a folder, which may be a link to a file of this folder only.

    A hub's cache is made of links, from snapshots into the blobs of the same repository. Raises
    InputError for links to elsewhere.
    """
    try:
        home, target = folder.resolve(), path.resolve()
    except ValueError as error:
        raise unreadable(path, error) from None
    except (OSError, RuntimeError):
        raise InputError(f"'{path}' is a link to itself", "download it again") from None
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(parent) for parent in allowed):
        raise InputError(
            f"'{path}' is a link to a file outside its folder, which is not followed",
            "replace the link by the file itself, or remove it",
        )
    return path


def unreadable(path: str | Path, error: Exception) -> InputError:
    """Return the refusal of a file that the system does not read."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"cannot read '{path}': {why}")


def check_plain(folder: Path) -> None:
    """Raise InputError unless a folder holds but folders, and files that no other name has.

    What is written to a link or read from a pipe is elsewhere, or nowhere.
    """
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            found = path.lstat()
            is_file = S_ISREG(found.st_mode)
            if is_file and found.st_nlink > 1:
                raise InputError(f"'{path}' has a second name elsewhere, expected one")
            if not is_file and not S_ISDIR(found.st_mode):
                raise InputError(f"'{path}' is {_kind(found.st_mode)}, expected a file")


def _kind(mode: int) -> str:
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "something else")


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name the file in the system's errors about it: those of an open file name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
