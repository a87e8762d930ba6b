"""One HTML file with a table, its figures, the history of every model and how to make it again.

It needs no network and runs no script: figures are inline SVG. The page is a template
(templates/report.html), which escapes all that comes from sidecars.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli import __version__
from prunecli.errors import InputError
from prunecli.files import output
from prunecli.files.sidecar import HistoryStep, Sidecar
from prunecli.report import printable
from prunecli.tables import draw, figures, reference
from prunecli.tables.layouts import rows_of_layout
from prunecli.tables.render import Table, notes_below
from prunecli.tables.runs import Runs

LONG = 60  # characters of an option's value that a line has no room for


def write(path: str, runs: Runs, table: Table, paper: str | None) -> None:
    """Write the report to `path`; raise InputError if matplotlib is not installed."""
    with output.staged(path) as temporary:
        output.write_text(temporary, page(runs, table, paper))


def page(runs: Runs, table: Table, paper: str | None) -> str:
    """Return the report as HTML; raise InputError if matplotlib is not installed."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("prunecli.tables"),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(
        title=table.title or "Models",
        table=table,
        letters=table.footnotes(),
        notes=notes_below(table),
        figures=list(_figures(runs, paper)),
        comparisons=list(_comparisons(runs)),
        models=[_model(runs, key) for key in runs.models.checkpoints],
        inconsistencies=reference.inconsistencies() if paper is not None else [],
        version=__version__,
    )


def _shown(value: Any) -> Any:
    """Return what the template prints: figures as they are, texts without control characters."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figures(runs: Runs, paper: str | None) -> Iterator[dict[str, Any]]:
    """Yield every figure that these models have something for."""
    from markupsafe import Markup

    for number, figure in figures.FIGURES.items():
        try:
            drawing = figures.drawing(rows_of_layout(runs, figure.layouts[0], paper), number)
        except InputError:  # nothing matched for this one
            continue
        # matplotlib numbers the parts of each drawing alike, a page must not; it escapes its texts
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>figure{number}-", draw.svg(drawing))
        yield {"title": drawing.title, "svg": Markup(svg)}


def _comparisons(runs: Runs) -> Iterator[dict[str, Any]]:
    """Yield the pairs of retrained and trained models, in which setting they match or why not."""
    records = {key: record for key, (_, record) in runs.models.checkpoints.items()}
    for pair in runs.pairs:
        retrained = records[pair.pruned].made_by.command != "prune"
        if retrained and records[pair.scratch].tokens.trained:
            names = {"pruned": pair.pruned, "scratch": pair.scratch}
            named = {kind: runs.models.name(key) for kind, key in names.items()}
            yield {**named, "setting": pair.setting, "why": pair.why}


def _model(runs: Runs, key: str) -> dict[str, Any]:
    """Return a model's id and name, the steps that led to it, and the command of the last."""
    record: Sidecar = runs.models.checkpoints[key][1]
    argv = record.run.argv
    return {
        "id": record.id,
        "name": runs.models.name(key),
        "weights": str(record.outputs.get("digest", ""))[:16],
        "steps": [_step(step) for step in record.history],
        "command": shlex.join([Path(argv[0]).name, *argv[1:]]) if argv else "",
    }


def _step(step: HistoryStep) -> str:
    short = {k: v for k, v in step.options.items() if v is not None and len(str(v)) <= LONG}
    options = ", ".join(f"{key}={value}" for key, value in short.items())
    inputs = ", ".join(f"{entry.role} {entry.digest[:8]}" for entry in step.inputs)
    return f"{step.command} ({step.id[:8]}): {options}; from {inputs or 'nothing'}"
