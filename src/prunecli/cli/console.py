"""What a person sees: results on stdout, everything else on stderr."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli.report import Report, printable
from prunecli.settings import Result

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from prunecli.tables.render import Table

T = TypeVar("T")


class StderrReport(Report):
    """Notes as lines on stderr; progress, rate and time left where stderr is a terminal."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._status = ""
        plain = os.environ.get("TERM") == "dumb"
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
        """Yield `items` under a progress bar, if somebody is there to see it."""
        if not self.interactive:
            yield from super().progress(items, what, total, unit)
            return
        from rich.progress import MofNCompleteColumn, TextColumn

        counts = (
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}", markup=False),
        )
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        self._status = ""
        with _bar(*counts) as progress:
            task = progress.add_task(printable(what), total=total, rate="")
            for item in super().progress(items, what, total, unit):
                yield item
                progress.advance(task)
                speed = progress.tasks[0].speed
                rate = printable(self._status) or (f"{speed:.2f} {unit}/s" if speed else "")
                progress.update(task, rate=rate)

    @contextmanager
    def reading(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show bytes under a progress bar, if somebody is there to see it."""
        with super().reading(what, total) as passed:
            if not self.interactive:
                yield passed
                return
            from rich.progress import DownloadColumn, TransferSpeedColumn

            with _bar(DownloadColumn(), TransferSpeedColumn()) as progress:
                task = progress.add_task(printable(what), total=total)

                def done(count: int) -> None:
                    progress.advance(task, count)
                    passed(count)

                yield done


def _bar(*counts: "ProgressColumn") -> "Progress":
    """Return a progress bar on stderr that goes when it is done; `counts` stand behind it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # what is told may hold names: it is no markup
    told = TextColumn("{task.description}", markup=False)
    return Progress(
        told, BarColumn(), *counts, TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


def as_object(made: Result) -> dict[str, Any]:
    """Return the object that --json prints."""
    return {"path": made.path, "sidecar": made.sidecar, "results": made.results}


def print_objects(made: list[Result]) -> None:
    """Print the object of --json: of one model, or of several without their sidecars."""
    objects = [as_object(one) for one in made]
    many = {"results": [{"path": o["path"], "results": o["results"]} for o in objects]}
    print(json.dumps(objects[0] if len(objects) == 1 else many))


def print_made(made: Result, values: Mapping[str, Any]) -> None:
    """Print what was made: its path as typed, or with --json or --dry-run one object."""
    if values["json"] or values["dry_run"]:
        print(json.dumps(as_object(made)))
    else:
        # a pipe gets the very name, for the next command
        print(printable(made.path) if sys.stdout.isatty() else made.path)


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
