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

from prunecli import matching
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
    Column("trained", "trained tokens"),
    Column("matched", "token-matched with"),
    Column("data", "data"),
    Column("tokens", "tokens"),
    Column("loss", "loss", ".4f"),
    Column("perplexity", "perplexity", ".6g"),
    Column("seconds", "seconds", ".1f"),
    Column("peak_mb", "peak MB", ".0f"),
)
PAIR_COLUMNS = (
    Column("pruned", "pruned"),
    Column("scratch", "scratch"),
    Column("matched", "matched"),
    Column("setting", "setting"),
    Column("method", "method"),
    Column("params", "parameters"),
    Column("nonzero", "non-zero"),
    Column("data", "data"),
    Column("pruned_loss", "loss pruned", ".4f"),
    Column("scratch_loss", "loss scratch", ".4f"),
    Column("difference", "scratch - pruned", ".4f"),
    Column("why", "why not"),
)
LAYOUTS = ("models", "pairs")


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


@dataclass
class Models:
    """Checkpoints and their evaluations among some sidecars.

    Attributes:
        made: checkpoint sidecars by id, each with its path.
        measured: evaluations, each with its path and the id of its model (None: not among `made`).
    """

    made: dict[str, tuple[Path, Sidecar]]
    measured: list[tuple[Path, Sidecar, str | None]]


def table(paths: list[str], layout: str = "models") -> Table:
    """Collect sidecars from files and folders (searched to any depth) into one table.

    Layouts: `models` has a row per model and measurement, `pairs` one for each pruned model beside
    each scratch model of its size, told whether they are token-matched (matching.py).
    Raises UsageError for an unknown layout, InputError for a path without any sidecar, or one that
    is damaged.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}'{suggest(layout, list(LAYOUTS))}")
    models = _collected(paths)
    rows = _pairs(models) if layout == "pairs" else _rows(models)
    if not rows:
        missing = (
            "pair of a pruned and a scratch model of one size" if layout == "pairs" else "model"
        )
        raise InputError(f"no {missing} among these sidecars")
    return Table(rows, PAIR_COLUMNS if layout == "pairs" else COLUMNS)


def _collected(paths: list[str]) -> Models:
    found = [(path, record) for given in paths for path, record in _sidecars(given)]
    made: dict[str, tuple[Path, Sidecar]] = {}
    for path, record in found:
        if record.kind == "checkpoint":
            made.setdefault(record.id, (path, record))
    by_digest = {record.outputs.get("digest"): key for key, (_, record) in made.items()}
    measured = []
    for path, record in found:
        if record.kind == "eval":
            model = record.inputs[0]
            key = model.id if model.id in made else by_digest.get(model.digest)
            measured.append((path, record, key))
    return Models(made, measured)


def _rows(models: Models) -> list[dict[str, Value]]:
    partners = _partners(models)
    rows = [
        _row(path, models.made.get(key) if key else None, record, measured, partners)
        for path, record, key in models.measured
        for measured in record.results["data"]
    ]
    evaluated = {key for _, _, key in models.measured}
    rows += [
        _row(path, (path, record), None, {}, partners)
        for key, (path, record) in models.made.items()
        if key not in evaluated
    ]
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


@dataclass(frozen=True)
class Pair:
    """Ids of a pruned and a scratch model of one size; in which setting they match, or why not."""

    pruned: str
    scratch: str
    setting: str | None
    why: str


def _twins(models: Models) -> list[Pair]:
    """Return every pruned model beside every scratch model of the same size."""
    lines = {key: matching.lineage(record) for key, (_, record) in models.made.items()}

    def size(key: str) -> tuple[Any, ...]:
        results = models.made[key][1].results
        # a trained weight may round to zero, so densities are compared to a thousandth
        return results.get("sizes"), round(results.get("nonzero", 0) / results["params"], 3)

    return [
        Pair(one, other, *matching.setting(ours, theirs))
        for one, ours in lines.items()
        for other, theirs in lines.items()
        if ours.pruned and theirs.scratch and size(one) == size(other)
    ]


def _partners(models: Models) -> dict[str, list[str]]:
    """Return for every model the names of those that it is token-matched with."""
    found: dict[str, list[str]] = {}
    for pair in _twins(models):
        if pair.setting is not None:
            for one, other in ((pair.pruned, pair.scratch), (pair.scratch, pair.pruned)):
                found.setdefault(one, []).append(_name(models.made[other][0]))
    return found


def _pairs(models: Models) -> list[dict[str, Value]]:
    losses: dict[str, dict[str, tuple[str, float]]] = {}
    for _, record, key in models.measured:
        for measured in record.results["data"]:
            if key is not None:
                losses.setdefault(key, {})[measured["digest"]] = (
                    measured["source"],
                    measured["loss"],
                )
    rows: list[dict[str, Value]] = []
    for pair in _twins(models):
        ours, theirs = losses.get(pair.pruned, {}), losses.get(pair.scratch, {})
        path, record = models.made[pair.pruned]
        results = record.results
        for digest in sorted(ours.keys() & theirs.keys()) or [""]:
            source, loss = ours.get(digest, (None, None))
            other = theirs.get(digest, (None, None))[1]
            rows.append(
                {
                    "pruned": _name(path),
                    "scratch": _name(models.made[pair.scratch][0]),
                    "matched": "no" if pair.setting is None else "yes",
                    "setting": pair.setting,
                    "method": results.get("method"),
                    "params": results.get("params"),
                    "nonzero": results.get("nonzero"),
                    "data": source,
                    "pruned_loss": loss,
                    "scratch_loss": other,
                    # a difference means something only where the comparison is fair
                    "difference": other - loss
                    if pair.setting is not None and loss is not None and other is not None
                    else None,
                    "why": pair.why or None,
                }
            )
    return rows


def _name(path: Path) -> str:
    return path.parent.name if path.name == sidecar.FOLDER_SIDECAR else path.stem


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
    partners: dict[str, list[str]],
) -> dict[str, Value]:
    """Return one row: a model's making beside one measurement of it."""
    name = _name(path)
    made = model[1] if model else None
    if model is not None and model[0].name == sidecar.FOLDER_SIDECAR:
        name = _name(model[0])
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
        "trained": sum(entry.count for entry in made.tokens.trained) if made else None,
        "matched": ", ".join(partners.get(made.id, [])) or None if made else None,
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
