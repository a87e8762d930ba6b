"""Temporary files, in the folder that TMPDIR names, or else in the system's own.

Python passes over a TMPDIR that is none, and fills another disk than the one that was meant.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prunecli.errors import InputError, of_system

VARIABLE = "TMPDIR"


def folder() -> Path:
    """Return the folder of temporary files; raise InputError where there is none to write to."""
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise InputError(f"{VARIABLE} '{named}' is no folder", f"make it, or set {VARIABLE} anew")
    if named and not os.access(named, os.W_OK | os.X_OK):
        raise InputError(
            f"{VARIABLE} '{named}' cannot be written: no permission", f"set {VARIABLE} to another"
        )
    try:
        return Path(named or tempfile.gettempdir())
    except FileNotFoundError:
        raise InputError(
            "there is no folder for temporary files to write to", f"set {VARIABLE} to one"
        ) from None


@contextmanager
def file(size: int = 0) -> Iterator[IO[bytes]]:
    """Yield a temporary file, for which `size` bytes of the disk are taken at once.

    Raises InputError where there is no folder for it, PruneError for what the system refuses.
    """
    where = folder()
    with told():
        made = tempfile.NamedTemporaryFile(prefix="prunecli-", dir=where)  # noqa: SIM115
    try:
        if size and hasattr(os, "posix_fallocate"):
            # a file in memory that lacks room on the disk when it is written to ends the process
            with told():
                os.posix_fallocate(made.fileno(), 0, size)
        yield made
    finally:
        with told():
            made.close()


@contextmanager
def told() -> Iterator[None]:
    """Tell what the system refuses of a temporary file as PruneError, with the folder it is in."""
    try:
        yield
    except OSError as error:
        error.filename = str(folder())
        raise of_system(error) from error
