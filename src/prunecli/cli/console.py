"""What a person sees: results on stdout, everything else on stderr."""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli.cli import streams
from prunecli.files import world
from prunecli.report import Report, printable
from prunecli.settings import Result

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from prunecli.tables.render import Table

T = TypeVar("T")

PROGRESS = ("auto", "json", "none")
EVERY = 1.0  # seconds between lines of --progress json


class StderrReport(Report):
    """Notes as lines on stderr; progress, rate and time left where stderr is a terminal.

    `progress` is one of PROGRESS: `json` writes it as lines of JSON instead, whoever reads them,
    and whether `quiet` or not.
    """

    def __init__(self, quiet: bool, verbose: bool, progress: str = PROGRESS[0]) -> None:
        self.quiet, self.verbose, self.form = quiet, verbose, progress
        self._status = ""
        self.interactive = not quiet and progress == PROGRESS[0] and streams.redraws()

    def info(self, message: str) -> None:
        """Print a line unless --quiet."""
        if not self.quiet:
            streams.say(f"prunecli: {printable(message)}")

    def debug(self, message: str) -> None:
        """Print a line if --verbose."""
        if self.verbose:
            self.info(message)

    def status(self, text: str) -> None:
        """Show `text` with the progress."""
        self._status = text

    def progress(
        self, items: Iterable[T], what: str, total: int | None = None, unit: str = "it"
    ) -> Iterator[T]:
        """Yield `items`; show how many were done, if somebody is there to see it."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        with self._meter(what, total, unit) as advance:
            for item in super().progress(items, what, total, unit):
                yield item
                advance(1)

    @contextmanager
    def reading(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many bytes were done, if somebody is there to see it."""
        with super().reading(what, total) as passed, self._meter(what, total, "B") as advance:

            def done(count: int) -> None:
                advance(count)
                passed(count)

            yield done

    def _meter(
        self, what: str, total: int | None, unit: str
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Return what shows progress; call what it yields with each number that is done."""
        self._status = ""
        if self.form == "json":
            return self._lines(what, total, unit)
        return self._bar(what, total, unit) if self.interactive else _unseen()

    @contextmanager
    def _lines(self, what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """An object a line: the first, the last, and one a second."""
        start = told = time.monotonic()
        done = 0

        def tell(seconds: float) -> None:
            rate = done / seconds if done and seconds > 0 else None
            left = None if rate is None or total is None else round((total - done) / rate, 1)
            line = {"phase": what, "done": done, "total": total, "unit": unit}
            line |= {"rate": rate and float(f"{rate:.4g}"), "eta": left, "status": self._status}
            print(json.dumps(line), file=streams.stderr(), flush=True)

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            now = time.monotonic()
            if now - told >= EVERY and done != total:
                told = now
                tell(now - start)

        tell(0.0)
        yield advance
        tell(time.monotonic() - start)

    @contextmanager
    def _bar(self, what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar that goes when it is done."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # what is told may hold names: it is no markup
        told = TextColumn("{task.description}", markup=False)
        console = Console(file=streams.stderr())
        # lines that are told meanwhile go above the bar by `streams.say`
        options: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}
        options |= {"console": console, "transient": True}
        columns = (told, BarColumn(), *_counts(unit), TimeRemainingColumn())
        with streams.drawn(console), Progress(*columns, **options) as bar:
            task = bar.add_task(printable(what), total=total, rate="")

            def advance(count: int) -> None:
                bar.advance(task, count)
                speed = bar.tasks[0].speed
                rate = printable(self._status) or (f"{speed:.2f} {unit}/s" if speed else "")
                bar.update(task, rate=rate)

            yield advance


@contextmanager
def _unseen() -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def _counts(unit: str) -> "tuple[ProgressColumn, ...]":
    """Return what stands behind a bar: how many, of what, how fast."""
    from rich.progress import (
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    if unit == "B":
        return DownloadColumn(), TransferSpeedColumn()
    rate = TextColumn("{task.fields[rate]}", markup=False)
    return MofNCompleteColumn(), TextColumn(unit), rate


def as_object(made: Result) -> dict[str, Any]:
    """Return the object that --json prints."""
    return {"path": made.path, "sidecar": made.sidecar, "results": made.results}


def print_objects(made: list[Result]) -> None:
    """Print the object of --json: of one model, or of several without their sidecars."""
    objects = [as_object(one) for one in made]
    many = {"results": [{"path": o["path"], "results": o["results"]} for o in objects]}
    streams.result(json.dumps(objects[0] if len(objects) == 1 else many))


def print_made(made: Result, values: Mapping[str, Any], then: str = "") -> None:
    """Print what was made: its path as typed, or with --json or --dry-run one object.

    `then` is a command that may come next, without the program's name: `{out}` in it is the path.
    """
    if values["json"] or values["dry_run"]:
        streams.result(json.dumps(as_object(made)))
        return
    # a pipe gets the very name, for the next command
    streams.result(printable(made.path) if streams.stdout().isatty() else made.path)
    if then:
        hint(then.replace("{out}", shlex.quote(made.path)), values)


def hint(command: str, values: Mapping[str, Any], why: str = "next") -> None:
    """Name a command that may come next, where a person sees it; never asked, never waited for."""
    watched = streams.stderr().isatty() and streams.stdout().isatty()
    quiet = any(values[name] for name in ("quiet", "json", "dry_run"))
    if watched and not quiet and world.is_first():
        streams.say(f"prunecli: {why}: prunecli {printable(command)}")


def plain(value: float) -> str:
    """Return a number in plain digits, six of them significant."""
    return format(Decimal(f"{value:.6g}"), "f")


def width() -> int | None:
    """Return how many characters a line of stdout has, None where it is no terminal."""
    return shutil.get_terminal_size().columns if streams.stdout().isatty() else None


def print_columns(headings: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns: folded to the width of a terminal, whole in pipes."""
    from prunecli.tables.text import aligned

    streams.result(aligned(headings, rows, width()))


def print_table(table: "Table", format: str, as_json: bool) -> None:
    """Print a table in one of its formats, or as the object of --json."""
    from prunecli.tables.terminal import shown

    text = json.dumps({"results": table.objects()}) if as_json else shown(table, format, width())
    streams.result(text)
