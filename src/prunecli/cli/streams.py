"""Stdout is for results: what libraries print, log and warn of is told on stderr, as notes are."""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from prunecli.errors import REMEDIES, PruneError
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


class _Results(io.FileIO):
    """A descriptor that says what it is where it cannot be written to."""

    def write(self, data: Any) -> Any:
        """Write; raise PruneError where the system refuses, and ask it no more."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            why = error.strerror or str(error)
            remedy = REMEDIES.get(error.errno or 0, "")
            raise PruneError(f"cannot write to standard output: {why}", remedy) from error


@contextmanager
def guarded() -> Iterator[None]:
    """Tell that results cannot be written; go on where talk cannot: the work may take hours."""
    with _through("stdout", 1, _Results), _through("stderr", 2, _Lasting):
        yield


@contextmanager
def _through(name: str, descriptor: int, raw: type[io.FileIO]) -> Iterator[None]:
    """Write a standard stream by `raw`, if it is that of the descriptor."""
    before = getattr(sys, name)
    if not _is(before, descriptor):
        yield
        return
    buffer = io.BufferedWriter(raw(descriptor, "w", closefd=False))
    lines = raw is _Lasting or before.line_buffering
    stream = io.TextIOWrapper(buffer, before.encoding, before.errors, line_buffering=lines)
    setattr(sys, name, stream)
    try:
        yield
    finally:
        stream.flush()
        setattr(sys, name, before)


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
        return not self.quiet and redraws()

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


def redraws() -> bool:
    """Return whether stderr is a terminal where a bar can be drawn again and again.

    A cell of a notebook (`!prunecli ...`) says that it is one, and keeps every drawing. Its kernel
    is told who started it by JPY_PARENT_PID.
    """
    plain = os.environ.get("TERM") == "dumb" or "JPY_PARENT_PID" in os.environ
    return not plain and stderr().isatty()


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
