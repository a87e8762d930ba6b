"""One HTML file with a table, its figures, the lineage of every model and how to make it again.

It needs no network and runs no script: figures are inline SVG.
"""

import html
import re
import shlex
from pathlib import Path

from prunecli import __version__
from prunecli.errors import InputError
from prunecli.files import output
from prunecli.files.sidecar import Sidecar
from prunecli.tables import figures, reference, table
from prunecli.tables.collect import Models, name_of
from prunecli.tables.render import Table, as_html

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto} td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}
.number{text-align:right} .grey{color:#767676} .note{font-size:13px;margin:.2rem 0}
svg{max-width:100%;height:auto} pre{background:#f5f5f5;padding:.6rem;overflow-x:auto}
"""


def write(path: str, models: Models, table: Table, paper: str | None) -> None:
    """Write the report to `path`; raise InputError if matplotlib is not installed."""
    with output.staged(path) as temporary:
        output.write_text(temporary, _page(models, table, paper))


def _page(models: Models, table: Table, paper: str | None) -> str:
    title = table.title or "Models"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>prunecli: {html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<div class='wide'>{as_html(table)}</div>",
        *_drawings(models, paper),
        *_fairness(models),
        *(_lineage(path, record) for path, record in models.made.values()),
    ]
    if paper is not None:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in reference.inconsistencies())
        parts.append(f"<h2>Where the paper disagrees with itself</h2><ul>{lines}</ul>")
    parts.append(f"<p class='note'>prunecli {__version__}</p></body></html>\n")
    return "\n".join(parts)


def _drawings(models: Models, paper: str | None) -> list[str]:
    """Return every figure that these models have something for."""
    parts = []
    for number, figure in figures.FIGURES.items():
        try:
            drawing = figures.drawing(table.chosen(models, figure.layouts[0], paper), number)
        except InputError:  # nothing matched for this one
            continue
        # matplotlib numbers the parts of each drawing alike, a page must not
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>figure{number}-", drawing.svg())
        parts.append(f"<h2>{html.escape(drawing.title)}</h2>{svg}")
    return parts


def _fairness(models: Models) -> list[str]:
    trained = {key for key, (_, made) in models.made.items() if made.tokens.trained}
    pairs = [p for p in models.twins if p.scratch in trained and _retrained(models, p.pruned)]
    if not pairs:
        return []
    lines = []
    for pair in pairs:
        names = (name_of(models.made[key][0]) for key in (pair.pruned, pair.scratch))
        what = pair.setting or f"not token-matched: {pair.why}"
        lines.append(f"<li>{html.escape(' and '.join(names))}: {html.escape(what)}</li>")
    return [f"<h2>Which comparisons are fair</h2><ul>{''.join(lines)}</ul>"]


def _retrained(models: Models, key: str) -> bool:
    return models.made[key][1].made_by.command != "prune"


def _lineage(path: Path, record: Sidecar) -> str:
    """Return the steps that led to a model, and the command of the last."""
    steps = []
    for step in record.history:
        told = [f"{k}={v}" for k, v in step.options.items() if v is not None and not _long(v)]
        read = ", ".join(f"{entry.role} {entry.digest[:8]}" for entry in step.inputs)
        line = f"{step.command} ({step.id[:8]}): {', '.join(told)}; from {read or 'nothing'}"
        steps.append(f"<li>{html.escape(line)}</li>")
    argv = [Path(record.run.argv[0]).name, *record.run.argv[1:]] if record.run.argv else []
    command = f"<pre>{html.escape(shlex.join(argv))}</pre>" if argv else ""
    digest = str(record.outputs.get("digest", ""))[:16]
    return (
        f"<h2 id='{record.id}'>{html.escape(name_of(path))}</h2>"
        f"<p class='note'>id {record.id}, weights {digest}</p><ol>{''.join(steps)}</ol>{command}"
    )


def _long(value: object) -> bool:
    return len(str(value)) > 60
