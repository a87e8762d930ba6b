"""The paper's tables as data: which entries, which columns, which differences.

`table1` shapes; `table2` the short form of 16; `table5`-`table7` (`table5-7`: all) candidates;
`table9` FLOPs and speed; `table10` pruning only; `table11` ratios; `table12`-`table15` (`scaling`:
all) tokens; `table16` equal retraining and equal total budget.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from prunecli.errors import InputError
from prunecli.tables import matching, reference
from prunecli.tables.entries import (
    AVERAGE,
    BASE,
    METRICS,
    SCRATCH,
    Metric,
    ModelRow,
    columns_of,
    difference,
    incomparable_because,
    pairs,
)
from prunecli.tables.render import Cell, Column, Row, Table, Value
from prunecli.tables.runs import Runs

IDENTITY = (
    Column("method", "method", repeats=True),
    Column("ratio", "ratio", ".3g", repeats=True),
    Column("initialization", "initialization", repeats=True),
    Column("train_tokens_b", "tokens (B)", ".4g", repeats=True),
    Column("minus", "compared with", subtracted_from="initialization"),
    Column("minus_tokens_b", "its tokens (B)", ".4g", subtracted_from="train_tokens_b"),
)


NAME = Column("name", "model", repeats=True)
SEEDS = Column("seeds", "seeds")
SOURCE = Column("source", "source", repeats=True)
SIZES = tuple(Column(key, key) for key in ("layers", "hidden", "heads", "kv_heads", "ffn"))
PARAMS = (Column("params", "parameters"), Column("nonzero", "non-zero"))
PUBLISHED = (Column("params_b", "paper (B)"),)
LOSS = Column("loss", "loss", ".4f", lower_is_better=True)
MATCHED = frozenset({matching.EQUAL_RETRAINING, matching.RELEASED})


def _any(entry: ModelRow) -> bool:
    return True


def _untrained(entry: ModelRow) -> bool:
    return entry.initialization != SCRATCH and not entry.tokens


def _retrained(entry: ModelRow) -> bool:
    return bool(entry.tokens) and entry.initialization != BASE


@dataclass(frozen=True)
class Layout:
    """One of the paper's tables.

    Attributes:
        published: the paper's own rows.
        only: which of our entries belong into it.
        shown: columns of sizes; the metrics come after them, all or those named.
        ours: where our entries come from.
        settings: in which settings two rows have a difference row, and what is subtracted.
    """

    title: str
    published: Callable[[], list[ModelRow]]
    only: Callable[[ModelRow], bool] = _any
    shown: tuple[Column, ...] = ()
    metrics: tuple[str, ...] | None = None
    settings: frozenset[str] = frozenset()
    minus: str = ""
    ours: "Callable[[Runs], list[ModelRow]]" = lambda runs: runs.rows


def _method(number: int) -> Callable[[], list[ModelRow]]:
    """Return the rows of one of Tables 12-15, which are the methods in order."""

    def rows() -> list[ModelRow]:
        entries = reference.entries("token-scaling")
        methods = list(dict.fromkeys(entry.method for entry in entries))
        return [entry for entry in entries if entry.method == methods[number - 12]]

    return rows


def _scaling(title: str, rows: Callable[[], list[ModelRow]]) -> Layout:
    return Layout(title, rows, _retrained, settings=MATCHED, minus=SCRATCH)


def _candidates(table: str) -> Layout:
    return Layout(
        f"Table {table}: candidate shapes",
        lambda: reference.candidates(table),
        lambda entry: table in ("", entry.shape["table"]),
        (*SIZES[1:], *PARAMS[:1], *PUBLISHED, LOSS, Column("selected", "selected")),
        (),
        ours=lambda runs: runs.candidates,
    )


SHORT = ("ppl_wikitext2", "average")
BUDGETS = frozenset({matching.EQUAL_RETRAINING, matching.EQUAL_TOTAL})
SPEED = tuple(
    Column(key, heading, ".3f")
    for key, heading in (
        ("prefill_speedup", "prefill x"),
        ("decode_speedup", "decode x"),
        ("train_speedup", "training x"),
    )
)


LAYOUTS: dict[str, Layout] = {
    "table1": Layout("Table 1: shapes", reference.shapes, _any, (*SIZES, *PARAMS, *PUBLISHED), ()),
    "table2": Layout(
        "Table 2: equal retraining and equal total budget",
        lambda: reference.entries("equal-total"),
        _retrained,
        metrics=SHORT,
        settings=BUDGETS,
        minus="pruned",
    ),
    "table5": _candidates("5"),
    "table6": _candidates("6"),
    "table7": _candidates("7"),
    "table5-7": replace(
        _candidates(""), title="Tables 5-7: candidate shapes", published=reference.candidates
    ),
    "table9": Layout(
        "Table 9: FLOPs of one forward of 2048 tokens, in 10^12",
        reference.shapes,
        _any,
        (
            *PARAMS,
            Column("tflops_exact", "TFLOPs", ".3f"),
            Column("tflops_official", "paper's rule", ".3f"),
            Column("tflops", "paper"),
            *SPEED,
        ),
        (),
    ),
    "table10": Layout(
        "Table 10: pruning only", lambda: reference.entries("pruning-only"), _untrained
    ),
    "table11": _scaling(
        "Table 11: ratios at equal retraining tokens", lambda: reference.entries("ratio-ablation")
    ),
    **{
        f"table{number}": _scaling(f"Table {number}: tokens", _method(number))
        for number in range(12, 16)
    },
    "scaling": _scaling("Tables 12-15: tokens", lambda: reference.entries("token-scaling")),
    "table16": Layout(
        "Table 16: equal retraining and equal total budget",
        lambda: reference.entries("equal-total"),
        _retrained,
        settings=BUDGETS,
        minus="pruned",
    ),
}


def build(layout: Layout, entries: list[ModelRow]) -> Table:
    """Return entries in one of the paper's layouts, with the differences that are fair.

    Pairs that are not token-matched get no difference row but a line that says why.
    """
    entries = _marked(entries)
    measured = () if layout.metrics == () else columns_of(entries)
    if layout.metrics:
        own = tuple(column for column in measured if column not in METRICS)
        measured = (*(c for c in measured if c.key in layout.metrics), *own)
        measured = tuple(sorted(measured, key=lambda column: column is AVERAGE))
    rows: list[Row] = []
    notes: list[str] = []
    for group in _groups(layout, entries):
        rows += [_values(entry) for entry in group]
        differences, unfair = _differences(layout, group, measured)
        rows += differences
        notes += [note for note in unfair if note not in notes]
    columns = _columns(layout, rows, measured)
    return Table(rows, columns, layout.title, notes, _legend(entries, rows))


def _legend(entries: list[ModelRow], rows: list[Row]) -> list[str]:
    """Return what the initializations mean that stand in these rows."""
    lines: dict[str, None] = {}
    for entry in entries:
        if entry.pruned and entry.parent:
            unit = " billion" if entry.source == "paper" else ""
            trained = f"trained on {entry.parent[1:]}{unit} tokens" if entry.before else "released"
            lines[f"{entry.initialization}: pruned from a parent that was {trained}"] = None
    if any(row.get("minus") for row in rows):
        lines["- NAME: the difference of two rows above, positive where NAME is worse"] = None
    return list(lines)


def _columns(layout: Layout, rows: list[Row], measured: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the columns that hold anything; those that identify a row always stand first."""

    def used(column: Column) -> bool:
        return any(row.get(column.key) is not None for row in rows)

    ours = any(row["source"] == "ours" for row in rows)
    both = ours and any(row["source"] == "paper" for row in rows)
    identity = (SOURCE,) * both + (NAME,) * ours + tuple(filter(used, IDENTITY))
    seeds = (
        (SEEDS,) if any(isinstance(n := row.get("seeds"), int) and n > 1 for row in rows) else ()
    )
    return (*identity, *seeds, *filter(used, layout.shown), *filter(used, measured))


def _groups(layout: Layout, entries: list[ModelRow]) -> list[list[ModelRow]]:
    """Return the rows that stand together: those of one method and ratio.

    The paper's are apart by token count, too, where only equal counts are subtracted.
    """
    groups: dict[tuple[object, ...], list[ModelRow]] = {}
    apart = matching.EQUAL_TOTAL not in layout.settings
    for entry in entries:
        key: tuple[object, ...] = (entry.source, entry.parent)
        if layout.settings:
            tokens = entry.tokens if apart and entry.source == "paper" else None
            key = (entry.source, entry.method, str(entry.ratio), tokens)
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _values(entry: ModelRow) -> Row:
    shape, notes = entry.shape, entry.shape.get("notes", {})
    row: Row = {
        "source": entry.source,
        "name": Cell(entry.name, note=entry.integrity_error),
        "method": entry.method,
        "ratio": entry.ratio,
        "initialization": entry.initialization,
        "train_tokens_b": _billions(entry.tokens, entry.source),
        "seeds": entry.seeds,
    }
    row |= {key: Cell(shape[key], note=notes.get(key, "")) for key in shape if key != "notes"}
    if "flops" in shape:
        row["tflops_exact"] = shape["flops"] / 1e12
    if "flops_official" in shape:
        row["tflops_official"] = shape["flops_official"] / 1e12
    for key, metric in entry.metrics.items():
        row[key] = Cell(metric.value, spread=metric.spread, note=metric.note)
    return row


def _billions(tokens: Decimal | int | None, source: str) -> Value:
    return tokens if tokens is None or source == "paper" else float(tokens) / 1e9


def _differences(
    layout: Layout, group: list[ModelRow], measured: tuple[Column, ...]
) -> tuple[list[Row], list[str]]:
    """Return the difference rows of a group, and why entries without a partner have none."""
    rows: list[Row] = []
    unfair: dict[str, tuple[ModelRow, ModelRow]] = {}
    matched: list[ModelRow] = []
    for pruned, scratch, setting, why in pairs(group) if layout.settings else ():
        if setting not in layout.settings:
            if why and pruned.source == "ours":
                line = f"not compared: {pruned.name} with {scratch.name}: {why}"
                unfair[line] = (pruned, scratch)
            continue
        matched += [pruned, scratch]
        row, minus = (pruned, scratch) if layout.minus == SCRATCH else (scratch, pruned)
        rows.append(
            {
                "source": row.source,
                "name": f"{row.name} - {minus.name}",
                "method": row.method,
                "ratio": row.ratio,
                "initialization": row.initialization,
                "train_tokens_b": _billions(row.tokens, row.source),
                "minus": minus.initialization,
                "minus_tokens_b": _billions(minus.tokens, minus.source),
                "setting": setting,
            }
            | {column.key: difference(row, minus, column) for column in measured}
        )
    # that other pairs do not match is no news where both have partners
    alone = [line for line, pair in unfair.items() if any(one not in matched for one in pair)]
    return rows, alone


def _marked(entries: list[ModelRow]) -> list[ModelRow]:
    """Return entries whose cells say where they differ from most of their column.

    Values on other tokens, by another tokenizer, task version or metric look the same but are not.
    """
    usual: dict[str, Metric] = {}
    for column in {key for entry in entries for key in entry.metrics}:
        ours = [e.metrics[column] for e in entries if column in e.metrics and e.source == "ours"]
        if ours:
            most = Counter(metric.protocol for metric in ours).most_common(1)[0][0]
            usual[column] = next(metric for metric in ours if metric.protocol == most)
    return [_against(entry, usual) for entry in entries]


def _against(entry: ModelRow, usual: dict[str, Metric]) -> ModelRow:
    if entry.source != "ours":
        return entry
    metrics = {}
    for key, metric in entry.metrics.items():
        other = incomparable_because(metric, usual[key])
        notes = filter(None, (metric.note, f"unlike most of its column: {other}" if other else ""))
        metrics[key] = replace(metric, note="; ".join(notes))
    return replace(entry, metrics=metrics)


def select(layout: Layout, entries: Iterable[ModelRow]) -> list[ModelRow]:
    """Return those of our entries that belong into a layout, ordered as its rows are."""
    chosen = [entry for entry in entries if layout.only(entry)]
    return sorted(
        chosen,
        key=lambda e: (e.method, float(e.ratio or 0), float(e.tokens or 0), e.initialization),
    )


def rows_of_layout(runs: Runs, name: str, paper: str | None) -> list[ModelRow]:
    """Return what belongs into one of LAYOUTS, the paper's own rows first where it is asked for.

    Raises InputError where nothing does.
    """
    layout = LAYOUTS[name]
    ours = select(layout, layout.ours(runs))
    if not ours and paper is None:
        raise InputError(f"no sidecar here has what layout '{name}' shows")
    return ([] if paper is None else layout.published()) + ours
