"""The library verb `table`: one row per model, from any set of sidecars.

A checkpoint's sidecar tells what was done and what it cost, an evaluation's what came out of it;
they meet by the model's id (or, for models from elsewhere, by the digest of their weights).
"""

import csv
import io
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.io import sidecar
from prunecli.io.sidecar import Sidecar

FORMATS = ("rich", "md", "csv", "tex", "json")
Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column: its key in JSON and CSV, its heading, and how it is printed for people."""

    key: str
    heading: str
    style: str = ""


COLUMNS = (
    Column("model", "model"),
    Column("method", "method"),
    Column("granularity", "granularity"),
    Column("ratio", "block ratio", ".4f"),
    Column("params", "parameters"),
    Column("nonzero", "non-zero"),
    Column("tflops", "TFLOPs", ".5g"),
    Column("data", "data"),
    Column("tokens", "tokens"),
    Column("loss", "loss", ".4f"),
    Column("perplexity", "perplexity", ".6g"),
    Column("seconds", "seconds", ".1f"),
    Column("peak_mb", "peak MB", ".0f"),
)


@dataclass
class Table:
    """Rows of plain values by column key; `None` where nothing was measured."""

    rows: list[dict[str, Value]]
    columns: tuple[Column, ...] = COLUMNS

    def render(self, format: str) -> str:
        """Return the table as text; raise UsageError for a format that is none of FORMATS."""
        if format not in FORMATS:
            raise UsageError(f"unknown format '{format}'{suggest(format, list(FORMATS))}")
        if format == "json":
            return json.dumps(self.rows, indent=1)
        if format == "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([column.key for column in self.columns])
            writer.writerows([[row[column.key] for column in self.columns] for row in self.rows])
            return text.getvalue().rstrip("\n")
        headings = [column.heading for column in self.columns]
        cells = [[_cell(row[c.key], c.style) for c in self.columns] for row in self.rows]
        return {"md": _markdown, "tex": _latex, "rich": aligned}[format](headings, cells)


def table(paths: list[str]) -> Table:
    """Collect sidecars from files and folders (searched to any depth) into one table.

    Raises InputError for a path without any sidecar, or one that is damaged.
    """
    found = [(path, record) for given in paths for path, record in _sidecars(given)]
    models: dict[str, tuple[Path, Sidecar]] = {}
    for path, record in found:
        if record.kind == "checkpoint":
            models.setdefault(record.id, (path, record))
    by_digest = {record.outputs.get("digest"): key for key, (_, record) in models.items()}
    rows, evaluated = [], set()
    for path, record in found:
        if record.kind != "eval":
            continue
        model = record.inputs[0]
        key = model.id if model.id in models else by_digest.get(model.digest)
        evaluated.add(key)
        for measured in record.results["data"]:
            rows.append(_row(path, models.get(key) if key else None, record, measured))
    rows += [_row(p, (p, r), None, {}) for key, (p, r) in models.items() if key not in evaluated]
    if not rows:
        raise InputError("no evaluated and no pruned model among these sidecars")
    unique = {json.dumps(row, sort_keys=True): row for row in rows}
    return Table(list(unique.values()))


def _sidecars(given: str) -> list[tuple[Path, Sidecar]]:
    path = Path(given)
    if path.is_file():
        return [(path, sidecar.read(path))]
    if not path.is_dir():
        raise InputError(f"no such file or folder: '{given}'")
    records = []
    for file in sorted(path.rglob("*.json")):
        try:
            content = json.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        if isinstance(content, dict) and "made_by" in content and "kind" in content:
            records.append((file, sidecar.read(file)))
    if not records:
        raise InputError(f"no sidecar in '{given}'", "give files or folders made by prunecli")
    return records


def _row(
    path: Path,
    model: tuple[Path, Sidecar] | None,
    evaluation: Sidecar | None,
    measured: dict[str, Any],
) -> dict[str, Value]:
    """Return one row: a model's making beside one measurement of it."""
    name = path.parent.name if path.name == sidecar.FOLDER_SIDECAR else path.stem
    made = model[1] if model else None
    if model is not None and model[0].name == sidecar.FOLDER_SIDECAR:
        name = model[0].parent.name
    results = made.results if made else {}
    known = {**(evaluation.results if evaluation else {}), **results}
    nonzero = results.get("nonzero")
    flops = known.get("flops")
    return {
        "model": name,
        "method": results.get("method") or (made.made_by.command if made else "dense"),
        "granularity": results.get("granularity"),
        "ratio": results.get("ratio", None if made else 0.0),
        "params": known.get("params"),
        "nonzero": nonzero,
        "tflops": None if flops is None else flops / 1e12,
        "data": measured.get("source"),
        "tokens": measured.get("tokens"),
        "loss": measured.get("loss"),
        "perplexity": measured.get("perplexity"),
        "seconds": made.run.seconds if made else None,
        "peak_mb": made.run.peak_bytes / 1e6 if made else None,
    }


def _cell(value: Value, style: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    # plain digits, whatever the size
    return format(value, style) if style.endswith("f") else format(Decimal(f"{value:{style}}"), "f")


def _markdown(headings: list[str], cells: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _latex(headings: list[str], cells: list[list[str]]) -> str:
    def line(row: list[str]) -> str:
        escaped = (c.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&") for c in row)
        return " & ".join(escaped) + r" \\"

    body = [r"\toprule", line(headings), r"\midrule", *map(line, cells), r"\bottomrule"]
    start = rf"\begin{{tabular}}{{{'l' * len(headings)}}}"
    return "\n".join([start, *body, r"\end{tabular}"])


def aligned(headings: list[str], cells: list[list[str]]) -> str:
    """Return columns aligned by spaces: never wrapped, never truncated, numbers to the right."""
    rows = [headings, *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headings))]
    number = [all(_numeric(row[i]) for row in cells) for i in range(len(headings))]

    def line(row: list[str]) -> str:
        padded = (
            c.rjust(w) if right else c.ljust(w)
            for c, w, right in zip(row, widths, number, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, cells)])


def _numeric(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True
