"""The processes that `torchrun` started, by its environment variables: without loading torch."""

import os

from prunecli.errors import UsageError

SIZE, RANK, LOCAL = "WORLD_SIZE", "RANK", "LOCAL_RANK"
DIGITS = 9  # of any of them


def size() -> int:
    """Return how many processes there are; 1 without `torchrun`.

    Raises UsageError where the variables are not those of one process among so many.
    """
    count = _number(SIZE, "a number of processes", 1)
    if count < 1:
        raise _odd(SIZE, "a number of processes")
    if count > 1 and _number(RANK, below := f"a number below {SIZE}") >= count:
        raise _odd(RANK, below)
    return count


def is_job() -> bool:
    """Return whether there are others, or may be."""
    return os.environ.get(SIZE, "1") != "1"


def is_first() -> bool:
    """Return whether this process reports and writes for all, as one without others does.

    What is no number is refused by `size`, and the first one says so.
    """
    text = os.environ.get(RANK, "0")
    return not is_job() or not _is_number(text) or int(text) == 0


def local_rank() -> int | None:
    """Return the number of this process on its machine, None if nothing says one.

    Raises UsageError where the variable holds none.
    """
    return _number(LOCAL, "a number") if LOCAL in os.environ else None


def _number(name: str, what: str, usual: int = 0) -> int:
    text = os.environ.get(name, str(usual))
    if not _is_number(text):
        raise _odd(name, what)
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def _odd(name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} is '{os.environ.get(name)}': expected {what}", "start by torchrun, or unset it"
    )
