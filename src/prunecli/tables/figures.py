"""The figures of `table`: the paper's, from its results or ours, and two that are our own.

Figure 1 shows both settings side by side, 3 loss and accuracy against tokens, 4 the advantage of
pruning against size, 5 both models and their difference at equal total budget. `sweep` (sweep.py)
is for models that were pruned and not retrained, `plan` (kept.py) shows what went where.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prunecli.errors import InputError
from prunecli.tables import kept, matching, reference, sweep
from prunecli.tables.entries import (
    AVERAGE,
    SCRATCH,
    ModelRow,
    columns_of,
    difference,
    noise,
    pairs,
)
from prunecli.tables.layouts import MATCHED, rows_of_layout
from prunecli.tables.panels import CONFIDENT, Drawing, Panel, Series, compared, shown
from prunecli.tables.render import Column
from prunecli.tables.runs import Runs
from prunecli.tables.text import count, quantity

TOTAL = frozenset({matching.EQUAL_TOTAL})


def figure_of(layout: str | None) -> str:
    """Return the figure that belongs to a layout, where none is named."""
    return next((number for number, one in FIGURES.items() if layout in one.layouts), "1")


def drawing(entries: list[ModelRow], number: str) -> Drawing:
    """Return one of FIGURES from these entries; raise InputError if they have nothing for it."""
    asked = FIGURES[number]
    panels = compared(panel for panel in asked.panels(entries) if panel.series)
    if not panels:
        raise InputError(asked.nothing.format(number=number), asked.remedy)
    return shown(Drawing(asked.says(panels), [*panels]))


def figure(runs: Runs, number: str, layout: str | None, paper: str | None) -> Drawing:
    """Return one of FIGURES but `plan`; `layout` chooses other entries than its own.

    Raises InputError if the runs have nothing for it.
    """
    if number == SWEEP:
        return drawing(sweep.entries(runs), number)
    return drawing(rows_of_layout(runs, layout or FIGURES[number].layouts[0], paper), number)


def plan(paths: list[str]) -> Drawing:
    """Return figure `plan` of plans and checkpoints; raise InputError where there are none."""
    return shown(kept.drawing(paths))


def main_columns(entries: list[ModelRow]) -> list[Column]:
    """Return what figures show: one loss (or else perplexity), and the average accuracy."""
    columns = columns_of(entries)
    losses = [c for c in columns if c.lower_is_better]
    # a loss before a perplexity, whose differences mean something else at every level
    losses.sort(key=lambda column: column.key.startswith("ppl_"))
    return losses[:1] + [column for column in columns if column is AVERAGE]


def _bars(
    entries: list[ModelRow], settings: frozenset[str], column: Column, title: str
) -> tuple[Panel, Panel]:
    """Return a panel of both models of every pair, and one of their differences.

    The whisker of a pruned model is the interval of the difference: where it reaches the scratch
    model, there may be none.
    """
    kinds: dict[str, Series] = {
        kind: Series(kind, [], [], [], kind) for kind in ("pruned", SCRATCH)
    }
    apart = Series("", [], [], [])
    for pruned, scratch, setting, _ in pairs(entries):
        if setting not in settings:
            continue
        name: Any = _named(pruned, entries)
        cell = difference(pruned, scratch, column)
        if cell is None or cell.value is None:
            continue
        if name in apart.x:
            # runs that differ in more than what bars are named by
            name = f"{name} ({pruned.name}, {scratch.name})"
        one, other = pruned.metrics[column.key], scratch.metrics[column.key]
        sd = noise(one, other)
        half = None if sd is None else CONFIDENT * sd
        for metric, error, series in (
            (one, half, kinds["pruned"]),
            (other, None, kinds[SCRATCH]),
        ):
            series.x.append(name)
            series.y.append(float(metric.value))
            series.errors.append(error)
        apart.x.append(name)
        apart.y.append(float(cell.value))
        apart.errors.append(half)
    title = f"{title} ({column.heading})"
    lower = column.lower_is_better
    values, label = [s for s in kinds.values() if s.x], quantity(column.key, column.heading, lower)
    both = Panel(title, "", label, values, lower=lower)
    advantage = f"{_advantage(column)}; right of zero pruning is better"
    return both, Panel(advantage, "", label, [apart] if apart.x else [], zero=True)


def _advantage(column: Column) -> str:
    return f"advantage of pruning ({column.heading})"


def _named(pruned: ModelRow, entries: list[ModelRow]) -> str:
    """Return what tells a pruned entry from the others in a figure, and no more."""
    others = [entry for entry in entries if entry.pruned]
    parts = [pruned.method]
    if len({entry.ratio for entry in others}) > 1:
        parts.append(f"{float(pruned.ratio or 0):.3g}")
    if len({entry.initialization for entry in others}) > 1:
        parts.append(pruned.parent)
    if len({(entry.source, entry.tokens) for entry in others}) > len({e.source for e in others}):
        parts.append(_amount(pruned))
    if len({entry.source for entry in others}) > 1:
        parts.append(f"({pruned.source})")
    return " ".join(parts)


def _amount(entry: ModelRow) -> str:
    return count(float(entry.tokens or 0) * (1e9 if entry.source == "paper" else 1))


def _figure1(entries: list[ModelRow]) -> Iterator[Panel]:
    for column in main_columns(entries)[-1:]:
        yield _bars(entries, MATCHED, column, "equal retraining tokens")[0]
        yield _bars(entries, TOTAL, column, "equal total budget")[0]


def _figure3(entries: list[ModelRow]) -> Iterator[Panel]:
    large = any(e.source == "paper" for e in entries)
    unit = "training tokens (billions)" if large else "training tokens"
    for column in main_columns(entries):
        lines: dict[tuple[str, str], list[ModelRow]] = {}
        for entry in entries:
            if column.key in entry.metrics and entry.tokens:
                label = f"{entry.method} {entry.initialization}"
                group = entry.method + (" (ours)" if entry.source == "ours" else "")
                lines.setdefault((group, label), []).append(entry)
        series = []
        for (group, label), rows in lines.items():
            rows.sort(key=lambda row: float(row.tokens or 0))
            series.append(
                Series(
                    label,
                    [_tokens(row, large) for row in rows],
                    [float(row.metrics[column.key].value) for row in rows],
                    [row.metrics[column.key].spread for row in rows],
                    _kind(rows[0]),
                    group,
                    rows[0].initialization,
                )
            )
        title = f"{column.heading} against tokens"
        lower = column.lower_is_better
        label = quantity(column.key, column.heading, lower)
        yield Panel(title, unit, label, series, log=True, apart=True, lower=lower)


def _kind(entry: ModelRow) -> str:
    """Return how a line is dashed: a parent of unknown training is drawn apart."""
    return SCRATCH if not entry.pruned else "pruned" if entry.before else "released"


def _tokens(entry: ModelRow, large: bool) -> float:
    tokens = float(entry.tokens or 0)
    return tokens / 1e9 if entry.source == "ours" and large else tokens


def _figure4(entries: list[ModelRow]) -> Iterator[Panel]:
    sizes = {(e.method, e.ratio): e.shape["nonzero"] for e in reference.shapes()}
    large = any(entry.source == "paper" for entry in entries)
    several = len({(e.source, e.tokens) for e in entries if e.pruned}) > 1
    for column in main_columns(entries):
        lines: dict[str, list[tuple[float, float]]] = {}
        for pruned, scratch, setting, _ in pairs(entries):
            cell = difference(pruned, scratch, column) if setting in MATCHED else None
            key: Any = (pruned.method, pruned.ratio)
            size = pruned.shape.get("nonzero", sizes.get(key))
            if cell is not None and cell.value is not None and size:
                name = f"{pruned.method} {_amount(pruned)}" if several else pruned.method
                point = (size / 1e9 if large else float(size), float(cell.value))
                lines.setdefault(name, []).append(point)
        series = [
            Series(name, [x for x, _ in points], [y for _, y in points], group=name, part=name)
            for name, points in ((name, sorted(points)) for name, points in lines.items())
        ]
        unit = "parameters that are not zero" + " (billions)" * large
        label = f"{column.heading}: above zero pruning is better"
        yield Panel(_advantage(column), unit, label, series, zero=True)


def _figure5(entries: list[ModelRow]) -> Iterator[Panel]:
    for column in main_columns(entries)[-1:]:
        yield from _bars(entries, TOTAL, column, "equal total budget")


# -- what is seen ---------------------------------------------------------------------------------


def _wins(one: Series, other: Series, lower: bool) -> tuple[int, int]:
    """Return at how many of the places that two lines share the first is better, and how many."""
    theirs = dict(zip(other.x, other.y, strict=True))
    both = [(y, theirs[x]) for x, y in zip(one.x, one.y, strict=True) if x in theirs]
    return sum(a < b if lower else a > b for a, b in both), len(both)


def _says_bars(panels: list[Panel]) -> str:
    told = []
    for panel in panels:
        if len(panel.series) == 2:
            wins, all_ = _wins(panel.series[0], panel.series[1], panel.lower)
            told.append(f"in {wins} of {all_} at {panel.title.partition(' (')[0]}")
    return f"Pruned is better than scratch {', '.join(told)}"


def _says_tokens(panels: list[Panel]) -> str:
    """Say in how many pairs of lines pruning leads, at the fewest and at the most tokens."""
    panel = panels[0]
    ends: list[tuple[bool, bool]] = []
    for one in panel.series:
        for other in panel.series:
            if one.kind == SCRATCH or other.kind != SCRATCH or one.group != other.group:
                continue
            theirs = dict(zip(other.x, other.y, strict=True))
            both = [(y, theirs[x]) for x, y in zip(one.x, one.y, strict=True) if x in theirs]
            if both:
                ahead = [a < b if panel.lower else a > b for a, b in (both[0], both[-1])]
                ends.append((ahead[0], ahead[1]))
    if not ends:
        return f"{panel.title[:1].upper()}{panel.title[1:]}"
    first, last = (sum(side) for side in zip(*ends, strict=True))
    return (
        f"Pruned is better than scratch in {first} of {len(ends)} at the fewest tokens, "
        f"in {last} at the most"
    )


def _says_sizes(panels: list[Panel]) -> str:
    lines = [one for one in panels[0].series if len(one.y) > 1]
    values = [y for one in panels[0].series for y in one.y]
    told = f"Pruned is better than scratch in {sum(y > 0 for y in values)} of {len(values)}"
    if not lines:
        return told
    falling = sum(one.y[0] < one.y[-1] for one in lines)
    return (
        f"{told}; the smallest model has a smaller lead than the largest in {falling} of "
        f"{len(lines)} methods"
    )


@dataclass(frozen=True)
class Figure:
    """How a figure is made, for which layouts it stands, and what is seen in it.

    `nothing` and `remedy` are the error where there is nothing to show.
    """

    title: str
    layouts: tuple[str, ...]
    panels: Callable[[list[ModelRow]], Iterator[Panel]]
    says: Callable[[list[Panel]], str]
    nothing: str = "no token-matched runs for figure {number}"
    remedy: str = "see table --layout pairs for why"


SWEEP, PLAN = "sweep", "plan"
FIGURES = {
    "1": Figure("Pruning against training from scratch", ("table2",), _figure1, _says_bars),
    "3": Figure(
        "More tokens",
        ("scaling", "table12", "table13", "table14", "table15"),
        _figure3,
        _says_tokens,
    ),
    "4": Figure("Smaller models", ("table11",), _figure4, _says_sizes),
    "5": Figure("Equal total budget", ("table16",), _figure5, _says_bars),
    SWEEP: Figure(
        "Pruned, not retrained",
        ("table10",),
        sweep.panels,
        sweep.says,
        "no pruned model here has a measured loss",
        "evaluate each with `prunecli eval --out FILE.json`",
    ),
    PLAN: Figure("What went where", (), lambda entries: iter(()), lambda panels: ""),
}
