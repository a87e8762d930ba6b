"""What a person sees: results on stdout, everything else on stderr.

What libraries print, log and warn of is talk too: it is told line by line as notes are.
"""

import ctypes
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from prunecli.report import Report, cut, printable
from prunecli.settings import Result

if TYPE_CHECKING:
    from prunecli.tables.render import Table

T = TypeVar("T")
PARTIAL = 10_000  # characters of a line without end

_streams: tuple[TextIO, TextIO] | None = None  # stdout and stderr, while libraries are kept apart
_results: int | None = None  # where descriptor 1 leads then
_bar: Any = None  # the console of rich that shows progress


class Talk(io.TextIOBase):
    """The stdout and stderr of libraries: each line is told as a note is, or not with --quiet."""

    def __init__(self) -> None:
        self.quiet = False
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of stderr."""
        return _stderr().encoding

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def isatty(self) -> bool:
        """Return whether somebody watches."""
        return not self.quiet and _stderr().isatty()

    def fileno(self) -> int:
        """Return the descriptor of stderr."""
        return _stderr().fileno()

    def write(self, text: str) -> int:
        """Tell the lines that end in `text`; keep the beginning of the next."""
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            self._tell(line)
        _, back, bar = rest.rpartition("\r")
        self._line = bar[:PARTIAL]
        if back and self.isatty() and _bar is None:
            # a bar that a library draws again and again
            _stderr().write(f"\r{printable(bar)}")
            _stderr().flush()
        return len(text)

    def end(self) -> None:
        """Tell what is left of a line."""
        self._tell(self._line)
        self._line = ""

    def _tell(self, line: str) -> None:
        _, back, line = line.rpartition("\r")
        if line.strip() and not self.quiet:
            # over the bar that was drawn
            _say(("\r" if back and self.isatty() else "") + cut(line.rstrip()))


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
    """Print a result on stdout; libraries have nothing to say any more."""
    rejoin()
    print(text)


def _is(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _stderr() -> TextIO:
    return _streams[1] if _streams is not None else sys.stderr


def _say(line: str) -> None:
    """Print a line on stderr, above a bar if there is one."""
    if _bar is not None:
        _bar.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
        print(line, file=_stderr())


class StderrReport(Report):
    """Notes as lines on stderr; progress, rate and time left where stderr is a terminal."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._status = ""
        plain = os.environ.get("TERM") == "dumb"
        self.interactive = not quiet and not plain and _stderr().isatty()

    def info(self, message: str) -> None:
        """Print a line unless --quiet."""
        if not self.quiet:
            _say(f"prunecli: {printable(message)}")

    def debug(self, message: str) -> None:
        """Print a line if --verbose."""
        if self.verbose:
            self.info(message)

    def status(self, text: str) -> None:
        """Show `text` at the end of the progress bar."""
        self._status = text

    def progress(
        self, items: Iterable[T], what: str, total: int | None = None, unit: str = "it"
    ) -> Iterator[T]:
        """Yield `items` under a progress bar, if somebody is there to see it."""
        if not self.interactive:
            yield from super().progress(items, what, total, unit)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            # what is told may hold names: it is no markup
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        self._status = ""
        console = Console(file=_stderr())
        # lines that are told meanwhile go above the bar by `_say`
        apart: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}
        with _drawn(console), Progress(*columns, console=console, transient=True, **apart) as bar:
            task = bar.add_task(printable(what), total=total, rate="")
            for item in super().progress(items, what, total, unit):
                yield item
                bar.advance(task)
                speed = bar.tasks[0].speed
                rate = printable(self._status) or (f"{speed:.2f} {unit}/s" if speed else "")
                bar.update(task, rate=rate)


@contextmanager
def _drawn(console: Any) -> Iterator[None]:
    """Say lines by this console, which draws a bar; bars can be within bars."""
    global _bar
    before, _bar = _bar, console
    try:
        yield
    finally:
        _bar = before


def as_object(made: Result) -> dict[str, Any]:
    """Return the object that --json prints."""
    return {"path": made.path, "sidecar": made.sidecar, "results": made.results}


def print_objects(made: list[Result]) -> None:
    """Print the object of --json: of one model, or of several without their sidecars."""
    objects = [as_object(one) for one in made]
    many = {"results": [{"path": o["path"], "results": o["results"]} for o in objects]}
    result(json.dumps(objects[0] if len(objects) == 1 else many))


def print_made(made: Result, values: Mapping[str, Any]) -> None:
    """Print what was made: its path as typed, or with --json or --dry-run one object."""
    if values["json"] or values["dry_run"]:
        result(json.dumps(as_object(made)))
    else:
        rejoin()
        # a pipe gets the very name, for the next command
        result(printable(made.path) if sys.stdout.isatty() else made.path)


def plain(value: float) -> str:
    """Return a number in plain digits, six of them significant."""
    return format(Decimal(f"{value:.6g}"), "f")


def width() -> int | None:
    """Return how many characters a line of stdout has, None where it is no terminal."""
    stdout = _streams[0] if _streams is not None else sys.stdout
    return shutil.get_terminal_size().columns if stdout.isatty() else None


def print_columns(headings: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns: folded to the width of a terminal, whole in pipes."""
    from prunecli.tables.text import aligned

    result(aligned(headings, rows, width()))


def print_table(table: "Table", format: str, as_json: bool) -> None:
    """Print a table in one of its formats, or as the object of --json."""
    from prunecli.tables.terminal import shown

    result(json.dumps({"results": table.objects()}) if as_json else shown(table, format, width()))
