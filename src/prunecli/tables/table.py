"""`table`: sidecars and the paper's own rows as a table, a figure, a report or advice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.errors import InputError, OutputExists, UsageError, suggest
from prunecli.files import regular
from prunecli.files.claim import claimed
from prunecli.files.output import check_place
from prunecli.record import Record
from prunecli.settings import Output, RunContext
from prunecli.tables import advice, figures, marks, own_layouts, terminal
from prunecli.tables.collect import Models, collect
from prunecli.tables.layouts import LAYOUTS, build, rows_of_layout
from prunecli.tables.panels import Drawing
from prunecli.tables.picture import WIDTH, Picture
from prunecli.tables.render import Table
from prunecli.tables.runs import Runs

LAYOUT_NAMES = (*own_layouts.LAYOUTS, *LAYOUTS)
SUFFIXES = {"plot": (".png", ".svg", ".pdf"), "html": (".html", ".htm")}
DEFAULT, REFERENCE_DEFAULT, FIGURES_DEFAULT = "models", "table2", "table16"


@dataclass(frozen=True)
class TableRequest(Record):
    """What to show of the sidecars in some files and folders, and how.

    Attributes:
        paths: files, and folders that are searched to any depth; none are needed with a reference.
        layout: `models` has a row per model and measurement, `pairs` one for each pruned model
            beside each scratch model of its size; the others are the paper's (layouts.py).
        reference: `paper` adds the paper's own rows, or shows them alone where there are no paths.
        format: one of render.FORMATS.
        figure: one of figures.FIGURES, as text or drawn into the file `plot`.
        html: file for a report of tables, figures, histories and commands.
        advise: whether to recommend pruning or training from scratch instead; `budget` is how many
            tokens may be spent on training.
        width: characters of the terminal that text is for; None: text is whole.
    """

    paths: tuple[str, ...] = ()
    layout: str | None = None
    reference: str | None = None
    format: str = "rich"
    figure: str | None = None
    plot: str | None = None
    html: str | None = None
    advise: bool = False
    budget: float | None = None
    width: int | None = None


@dataclass(frozen=True)
class TableResult:
    """What `table` has to show: text to print, the same as plain JSON, and the table itself.

    `results` is None where the text is a figure, or the names of files that were written.
    """

    text: str
    results: Any = None
    table: Table | None = None


def table(request: TableRequest, run: RunContext = RunContext()) -> TableResult:
    """Compare runs in tables and figures, optionally beside the paper's results.

    Raises UsageError for unknown names or neither paths nor reference; InputError for a path
    without any sidecar, one that is damaged, or nothing that fits the layout; OutputExists.
    """
    _check(request)
    with claimed(run, request.plot, request.html):
        return _table(request, run)


def _table(request: TableRequest, run: RunContext) -> TableResult:
    files = {name: path for name in SUFFIXES if (path := getattr(request, name)) is not None}
    for name, path in files.items():
        check_file(name, path, run.output)
    plan = request.figure == figures.PLAN
    if plan and request.html is None:
        # plans that were written by hand have no sidecar, and are no rows of a table
        return _shown(request, run, None, drawn(request))
    runs = Runs(collect(list(request.paths)) if request.paths else Models())
    if request.advise:
        advised = advice.advise(runs, request.reference, request.budget)
        return TableResult(advised.text(request.width), advised.results)
    shown = build_table(runs, request.layout, request.reference)
    if request.html is not None:
        from prunecli.tables import html

        html.write(request.html, runs, shown, request.reference)
    drawing = None
    if request.plot is not None or request.figure is not None:
        drawing = figures.plan(list(request.paths)) if plan else _drawing(request, runs)
    return _shown(request, run, shown, drawing)


def _shown(
    request: TableRequest, run: RunContext, table: Table | None, drawing: Drawing | None
) -> TableResult:
    """Return a table or figure as text, or the names of the files that it went into."""
    files = [path for path in (request.plot, request.html) if path is not None]
    if drawing is not None and request.plot is not None:
        Picture(drawing).save(request.plot)
    elif drawing is not None:
        text = Picture(drawing).text(request.width or WIDTH)
        return TableResult(text, None, table)
    for path in files:
        run.report.debug(f"wrote {path}")
    if files:
        return TableResult("\n".join(files), None, table)
    assert table is not None  # there is no drawing
    text = terminal.shown(table, request.format, request.width)
    return TableResult(text, table.objects(), table)


def _check(request: TableRequest) -> None:
    if request.budget is not None and not request.advise:
        raise UsageError("--budget belongs to --advise")
    if request.advise and (request.layout or request.figure or request.plot or request.html):
        raise UsageError(
            "--advise prints advice only", "leave out --layout, --figure, --plot, --html"
        )
    if request.figure is not None and request.figure not in figures.FIGURES:
        near = suggest(request.figure, list(figures.FIGURES))
        raise UsageError(f"unknown figure '{request.figure}'{near}")
    own = request.figure in (figures.SWEEP, figures.PLAN)
    if not request.paths and own:
        raise UsageError(
            f"figure '{request.figure}' shows your own models", "give files or folders"
        )
    if not request.paths and request.reference is None:
        raise UsageError("no sidecars given", "give files or folders, or --reference paper")


def build_table(runs: Runs, layout: str | None, reference: str | None) -> Table:
    """Return one layout of some runs; raise UsageError or InputError as `table` does."""
    if reference not in (None, "paper"):
        raise UsageError(f"unknown reference '{reference}'", "there is 'paper'")
    if layout is None:
        layout = DEFAULT if reference is None else REFERENCE_DEFAULT
    if layout not in LAYOUT_NAMES:
        raise UsageError(f"unknown layout '{layout}'{suggest(layout, list(LAYOUT_NAMES))}")
    if layout in own_layouts.LAYOUTS:
        if reference is not None:
            raise UsageError(f"layout '{layout}' has no rows of the paper", "choose another layout")
        return own_layouts.build(runs, layout)
    return build(LAYOUTS[layout], rows_of_layout(runs, layout, reference))


def drawn(request: TableRequest) -> Drawing:
    """Return the figure that a request asks for; raises what `table` raises."""
    _check(request)
    if request.figure == figures.PLAN:
        return figures.plan(list(request.paths))
    return _drawing(request, Runs(collect(list(request.paths)) if request.paths else Models()))


def _drawing(request: TableRequest, runs: Runs) -> Drawing:
    """Return the figure asked for, or that of the layout, of what the layout or figure is about."""
    number = request.figure or figures.figure_of(request.layout)
    # a layout of our own is about all that was retrained
    own = request.layout is not None and request.layout not in LAYOUTS
    layout = FIGURES_DEFAULT if own else request.layout
    return figures.figure(runs, number, layout, request.reference)


def check_file(option: str, path: str, output: Output) -> None:
    """Raise an error if a figure or report cannot go to `path`.

    UsageError for a name that says another kind of file, InputError for a folder, OutputExists for
    what is there: without `force`, or made by another program.
    """
    file, suffixes = Path(path), SUFFIXES[option]
    if file.suffix not in suffixes:
        raise UsageError(f"--{option} '{path}': expected a name ending in {' or '.join(suffixes)}")
    if regular.is_dir(file):
        raise InputError(f"'{path}' is a folder", "name a file")
    check_place(f"--{option} '{path}'", regular.resolved(file))
    if file.exists() and not output.force:
        raise OutputExists(f"'{path}' exists", "use --force or move it away")
    if file.exists() and not marks.is_ours(file):
        raise OutputExists(f"'{path}' exists and was not made by prunecli", "move it away")
