"""Stdout is for results: what libraries print, log and warn of is told on stderr, as notes are."""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from prunecli.files import world
from prunecli.report import cut, printable

PARTIAL = 10_000  # characters of a line without end

_streams: tuple[TextIO, TextIO] | None = None  # stdout and stderr, while libraries are kept apart
_results: int | None = None  # where descriptor 1 leads then
_bar: Any = None  # the console of rich that shows progress


class _Lasting(io.FileIO):
    """A descriptor that takes all that is written, though nobody may get it any more."""

    def write(self, data: Any) -> int:
        """Write what can be written: a full disk or a reader that has left stops no work."""
        with suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """Go on where stderr can no longer be written to: it is talk, and the work may take hours."""
    before = sys.stderr
    if not _is(before, 2):
        yield
        return
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Lasting(2, "w", closefd=False)),
        before.encoding,
        before.errors,
        line_buffering=True,
    )
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before


class Talk(io.TextIOBase):
    """The stdout and stderr of libraries: each line is told as a note is, or not with --quiet."""

    def __init__(self) -> None:
        self.quiet = False
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of stderr."""
        return stderr().encoding

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def isatty(self) -> bool:
        """Return whether somebody watches."""
        return not self.quiet and stderr().isatty()

    def fileno(self) -> int:
        """Return the descriptor of stderr."""
        return stderr().fileno()

    def write(self, text: str) -> int:
        """Tell the lines that end in `text`; keep the beginning of the next."""
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._tell(line)
        _, back, bar = rest.rpartition("\r")
        self._line = bar[:PARTIAL]
        if back and self.isatty() and _bar is None:
            # a bar that a library draws again and again
            stderr().write(f"\r{printable(bar)}")
            stderr().flush()
        return len(text)

    def end(self) -> None:
        """Tell what is left of a line."""
        self._tell(self._line)
        self._line = ""

    def _tell(self, line: str) -> None:
        _, back, line = line.rpartition("\r")
        if line.strip() and not self.quiet:
            # over the bar that was drawn
            say(("\r" if back and self.isatty() else "") + cut(line.rstrip()))


_TALK = Talk()


def keep_apart(quiet: bool) -> None:
    """From now on whatever is written to stdout or stderr by others is talk, until `rejoin`."""
    global _streams, _results
    _TALK.quiet = quiet
    if _streams is not None:
        return
    sys.stdout.flush()
    if _is(sys.stdout, 1) and _is(sys.stderr, 2):
        # those that are no Python write to the descriptor; nobody can make that printable
        _results, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    _streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = _TALK


def rejoin() -> None:
    """Make stdout and stderr what they were before `keep_apart`."""
    global _streams, _results
    if _streams is None:
        return
    _TALK.end()
    sys.stdout, sys.stderr = _streams
    _streams = None
    if _results is not None:
        # what C has buffered was no result
        ctypes.CDLL(None).fflush(None)
        os.dup2(_results, 1)
        os.close(_results)
        _results = None


def result(text: str = "") -> None:
    """Print a result on stdout; libraries have nothing to say any more.

    Of several processes the first one prints.
    """
    rejoin()
    if world.is_first():
        print(text)


def _is(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def stdout() -> TextIO:
    """Return stdout itself."""
    return _streams[0] if _streams is not None else sys.stdout


def stderr() -> TextIO:
    """Return stderr itself."""
    return _streams[1] if _streams is not None else sys.stderr


def say(line: str) -> None:
    """Print a line on stderr, above a bar if there is one."""
    if _bar is not None:
        _bar.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
        print(line, file=stderr())


@contextmanager
def drawn(console: Any) -> Iterator[None]:
    """Say lines by this console, which draws a bar; bars can be within bars."""
    global _bar
    before, _bar = _bar, console
    try:
        yield
    finally:
        _bar = before
