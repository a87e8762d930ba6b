"""What a person sees: results on stdout, everything else on stderr."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli.report import Report, printable
from prunecli.settings import Result

if TYPE_CHECKING:
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
        plain = os.environ.get("TERM") == "dumb" or progress != PROGRESS[0]
        self.interactive = not quiet and not plain and sys.stderr.isatty()

    def info(self, message: str) -> None:
        """Print a line unless --quiet."""
        if not self.quiet:
            print(f"prunecli: {printable(message)}", file=sys.stderr)

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
        """Yield `items` under a progress bar, if somebody is there to see it; or among lines."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        self._status = ""
        inner = super().progress(items, what, total, unit)
        if self.form == "json":
            yield from self._lines(inner, what, total, unit)
        elif self.interactive:
            yield from self._bar(inner, what, total, unit)
        else:
            yield from inner

    def _lines(self, items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
        """Yield `items`, and write an object a line: the first, the last, and one a second."""
        start = told = time.monotonic()
        done = 0

        def tell(seconds: float) -> None:
            rate = done / seconds if done and seconds > 0 else None
            left = None if rate is None or total is None else round((total - done) / rate, 1)
            line = {"phase": what, "done": done, "total": total, "unit": unit}
            line |= {"rate": rate and float(f"{rate:.4g}"), "eta": left, "status": self._status}
            print(json.dumps(line), file=sys.stderr, flush=True)

        tell(0.0)
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - told >= EVERY and done != total:
                told = now
                tell(now - start)
        tell(time.monotonic() - start)

    def _bar(self, items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
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
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(printable(what), total=total, rate="")
            for item in items:
                yield item
                progress.advance(task)
                speed = progress.tasks[0].speed
                rate = printable(self._status) or (f"{speed:.2f} {unit}/s" if speed else "")
                progress.update(task, rate=rate)


def as_object(made: Result) -> dict[str, Any]:
    """Return the object that --json prints."""
    return {"path": made.path, "sidecar": made.sidecar, "results": made.results}


def print_objects(made: list[Result]) -> None:
    """Print the object of --json: of one model, or of several without their sidecars."""
    objects = [as_object(one) for one in made]
    many = {"results": [{"path": o["path"], "results": o["results"]} for o in objects]}
    print(json.dumps(objects[0] if len(objects) == 1 else many))


def print_made(made: Result, values: Mapping[str, Any], then: str = "") -> None:
    """Print what was made: its path as typed, or with --json or --dry-run one object.

    `then` is a command that may come next, without the program's name: `{out}` in it is the path.
    """
    if values["json"] or values["dry_run"]:
        print(json.dumps(as_object(made)))
        return
    # a pipe gets the very name, for the next command
    print(printable(made.path) if sys.stdout.isatty() else made.path)
    if then:
        hint(then.replace("{out}", shlex.quote(made.path)), values)


def hint(command: str, values: Mapping[str, Any]) -> None:
    """Name a command that may come next, where a person sees it; never asked, never waited for."""
    if sys.stderr.isatty() and sys.stdout.isatty() and not values["quiet"]:
        print(f"prunecli: next: prunecli {printable(command)}", file=sys.stderr)


def plain(value: float) -> str:
    """Return a number in plain digits, six of them significant."""
    return format(Decimal(f"{value:.6g}"), "f")


def width() -> int | None:
    """Return how many characters a line of stdout has, None where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_columns(headings: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns: folded to the width of a terminal, whole in pipes."""
    from prunecli.tables.text import aligned

    print(aligned(headings, rows, width()))


def print_table(table: "Table", format: str, as_json: bool) -> None:
    """Print a table in one of its formats, or as the object of --json."""
    from prunecli.tables.terminal import shown

    print(json.dumps({"results": table.objects()}) if as_json else shown(table, format, width()))
