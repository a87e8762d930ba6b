"""The errors that a user can see. Each is one line: what, got / expected, remedy."""

import errno
import os
from collections.abc import Iterator

LISTED = 80  # names in a message: there are thousands of tasks


class PruneError(Exception):
    """Something failed while working (exit status 1).

    `what` says what went wrong, with the value that was got and the one expected; `remedy` says
    what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class NotANumber(PruneError):
    """A loss is NaN or infinite (exit status 1)."""


class OutOfMemory(PruneError):
    """The system or a limit gave no more memory (exit status 1)."""


class UsageError(PruneError):
    """Wrong usage or configuration, or an unknown name (exit status 2)."""

    exit_code = 2


class CheckFailed(PruneError):
    """`prunecli check` found something wrong (exit status 3)."""

    exit_code = 3


class InputError(PruneError):
    """The input cannot be used, or the request is impossible for it (exit status 4)."""

    exit_code = 4


class OutputExists(PruneError):
    """The output is there already (exit status 5)."""

    exit_code = 5


class Stopped(PruneError):
    """Stopped on request, with a state from which a rerun resumes (exit status 75)."""

    exit_code = 75


_FULL = "free some space, or choose another disk"
_FORBIDDEN = "change the permissions there, or choose another place"
REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another disk",
    errno.EIO: "check that disk, or choose another one",
    errno.EROFS: "choose another disk",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOLCK: "choose another disk, which has locks",
    errno.EOPNOTSUPP: "choose another disk, which has locks",
}


def of_system(error: OSError) -> PruneError:
    """Return what the system refused, with the path and what to do about it."""
    what = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        what = f"'{os.fsdecode(error.filename)}': {what}"
    return PruneError(what, REMEDIES.get(error.errno or 0, ""))


_NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "failed to map segment")


def of_memory(error: BaseException | None) -> OutOfMemory | None:
    """Return that there was too little memory, where an error came of that; None where it did not.

    Libraries tell it by errors of several kinds, which have their words in common.
    """
    for one in _causes(error):
        if isinstance(one, PruneError):
            return one if isinstance(one, OutOfMemory) else None
        said = " ".join(str(one).split())
        kinds = isinstance(one, RuntimeError | ImportError | OSError)
        told = kinds and any(words in said.lower() for words in _NO_MEMORY)
        if told or isinstance(one, MemoryError):
            what = f"too little memory: {said}" if said else "too little memory"
            return OutOfMemory(what, "free some, or raise the limit on it (ulimit -v)")
    return None


def refused(error: BaseException | None) -> PruneError | None:
    """Return what the system refused, where an error came of that; None where it did not."""
    if memory := of_memory(error):
        return memory
    for one in _causes(error):
        if isinstance(one, OSError) and one.errno in REMEDIES and one.filename is not None:
            return of_system(one)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and then what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def suggest(name: str, known: list[str]) -> str:
    """Return `: did you mean 'x'?` for the nearest of `known`, else all of them if few."""
    from difflib import get_close_matches

    if near := get_close_matches(name, known, n=1, cutoff=0.5):
        return f": did you mean '{near[0]}'?"
    return f"; choose from {', '.join(known)}" if len(known) <= LISTED else ""
