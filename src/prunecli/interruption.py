"""A signal to stop: noted when it comes, acted on at the next safe point.

It may come anywhere: inside a library that takes an exception for an error of its own, in an
import, between two steps of publishing. So its handler (cli/signals.py) only notes it, and what
runs long passes a safe point at every tensor, batch, document, file and task. A safe point raises
each time that it is passed, since what called it may swallow the exception.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_noted: int | None = None
_held = 0


class Interrupted(BaseException):
    """A signal was noted, and a safe point passed."""


def note(signal: int | None) -> None:
    """Note a signal; None forgets it."""
    global _noted
    _noted = signal


def noted() -> int | None:
    """Return the number of the signal that came, None if there was none."""
    return _noted


def asked() -> bool:
    """Return whether to stop: what `RunContext.stop` is from the command line."""
    return _noted is not None


def safe_point() -> None:
    """Raise Interrupted if a signal was noted."""
    if _noted is not None and not _held:
        raise Interrupted


@contextmanager
def held() -> Iterator[None]:
    """Pass no safe point: the block asks `stop` by itself, or must not be left half done."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
