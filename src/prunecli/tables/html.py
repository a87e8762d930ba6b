"""One HTML file: the verdict, figures, pairs of models, all models, and how to make them again.

It needs no network. Figures are inline SVG, and the only script sorts tables: the page allows that
one by its hash (templates/sort.js). The page is a template (templates/report.html), which escapes
all that comes from sidecars.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from prunecli import __version__
from prunecli.errors import InputError
from prunecli.files import output
from prunecli.files.sidecar import HistoryStep, Sidecar
from prunecli.report import printable
from prunecli.tables import advice, comparison, draw, figures, kept, reference
from prunecli.tables.panels import Drawing
from prunecli.tables.render import Table
from prunecli.tables.runs import Runs
from prunecli.tables.terminal import merged

LONG = 200  # characters of an option's value, the rest is cut
FIRST = ("1", figures.SWEEP)  # the figure that stands first, if there is one


def write(path: str, runs: Runs, table: Table, paper: str | None) -> None:
    """Write the report to `path`; raise InputError if matplotlib is not installed."""
    folder = Path(path).resolve().parent
    with output.staged(path) as temporary:
        output.write_text(temporary, page(runs, table, paper, folder))


def page(runs: Runs, table: Table, paper: str | None, folder: Path | None = None) -> str:
    """Return the report as HTML, for a file in `folder`, which paths in commands start from.

    Raises InputError if matplotlib is not installed.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("prunecli.tables"),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = (resources.files(__package__) / "templates" / "sort.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    drawings = dict(_drawings(runs, paper))
    pairs = comparison.pair_table(runs, paper)
    return environment.get_template("report.html").render(
        title=table.title or "Models",
        verdict=list(_verdict(runs, paper, drawings, pairs)),
        table=merged(table.without_empty()),
        pairs=pairs.without_empty() if pairs.rows else None,
        figures=[_figure(name, one) for name, one in drawings.items()],
        unmatched=list(_unmatched(runs)),
        models=[_model(runs, key, folder) for key in runs.models.checkpoints],
        inconsistencies=reference.inconsistencies() if paper is not None else [],
        version=__version__,
        markup=Markup,
        script=Markup(script),
        script_hash=Markup(base64.b64encode(digest).decode()),
    )


def _shown(value: Any) -> Any:
    """Return what the template prints: markup as it is, texts without control characters."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _drawings(runs: Runs, paper: str | None) -> Iterator[tuple[str, Drawing]]:
    """Yield every figure that these models have something for, that to be seen first first."""
    for name in sorted(figures.FIGURES, key=lambda name: name not in FIRST):
        try:
            if name == figures.PLAN:
                if paths := kept.small(runs.models):
                    yield name, figures.plan(paths)
            else:
                yield name, figures.figure(runs, name, None, paper)
        except InputError:  # nothing for this one
            continue


def _figure(name: str, drawing: Drawing) -> dict[str, Any]:
    from markupsafe import Markup

    svgs = [Markup(svg) for svg in draw.svgs(drawing, f"figure{name}")]
    return {"title": drawing.title, "svgs": svgs}


def _verdict(
    runs: Runs, paper: str | None, drawings: Mapping[str, Drawing], pairs: Table
) -> Iterator[str]:
    """Yield what a reader wants to know first, in sentences."""
    told = [f"{drawings[name].title}." for name in FIRST if name in drawings]
    if not told:
        yield "No verdict: no pruned model here was measured beside its parent or a scratch twin."
    yield from told
    if sure := comparison.certain(pairs):
        yield sure
    try:
        advised = advice.advise(runs, paper, None)
    except InputError:
        return
    if advised.results["verdict"] in ("prune", "scratch"):
        yield advised.text().partition("\n")[0] + "."


def _unmatched(runs: Runs) -> Iterator[dict[str, Any]]:
    """Yield the pairs of retrained and trained models that are not token-matched, and why."""
    records = {key: record for key, (_, record) in runs.models.checkpoints.items()}
    for pair in runs.pairs:
        retrained = records[pair.pruned].made_by.command != "prune"
        if retrained and records[pair.scratch].tokens.trained and pair.setting is None:
            names = {"pruned": pair.pruned, "scratch": pair.scratch}
            yield {kind: runs.models.name(key) for kind, key in names.items()} | {"why": pair.why}


def _model(runs: Runs, key: str, folder: Path | None) -> dict[str, Any]:
    """Return a model's id and name, the steps that led to it, and the command of the last."""
    record: Sidecar = runs.models.checkpoints[key][1]
    argv = record.run.argv
    words = [Path(argv[0]).name, *(_relative(word, folder) for word in argv[1:])] if argv else []
    return {
        "id": record.id,
        "name": runs.models.name(key),
        "weights": str(record.outputs.get("digest", ""))[:16],
        "steps": [_step(step) for step in record.history],
        "command": shlex.join(words),
    }


def _relative(word: str, folder: Path | None) -> str:
    """Return a word of a command with a path from `folder` in place of an absolute one.

    Of a path elsewhere only the name stays: where somebody keeps their files is not for others.
    """
    option, equals, path = word.partition("=") if word.startswith("-") else ("", "", word)
    if not path.startswith(("/", "~")):
        return word
    short = f".../{Path(path).name}"
    if folder is not None and Path(path).is_relative_to(folder):
        short = str(Path(path).relative_to(folder))
    return f"{option}{equals}{short}"


def _step(step: HistoryStep) -> str:
    options = ", ".join(_words(step.options))
    inputs = ", ".join(f"{entry.role} {entry.digest[:8]}" for entry in step.inputs)
    return f"{step.command} ({step.id[:8]}): {options}; from {inputs or 'nothing'}"


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield options as text: names and values, those of a method beside the others."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            inner = ", ".join(_words(value))
            if inner:
                yield inner if key == "options" else f"{key} ({inner})"
        elif value is not None:
            yield f"{key} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = " ".join(map(_value, value))
    elif isinstance(value, Mapping):
        value = ", ".join(_words(value))
    text = str(value)
    return text if len(text) <= LONG else f"{text[:LONG]}..."
