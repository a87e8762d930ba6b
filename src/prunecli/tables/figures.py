"""The paper's figures as data: panels of bars or lines, which draw.py draws.

Figure 1 shows both settings side by side, 3 loss and accuracy against tokens, 4 the advantage of
pruning against size, 5 both models and their difference at equal total budget.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from prunecli.errors import InputError
from prunecli.report import printable
from prunecli.tables import matching, reference
from prunecli.tables.entries import AVERAGE, SCRATCH, ModelRow, columns_of, difference, pairs
from prunecli.tables.layouts import MATCHED
from prunecli.tables.render import Column
from prunecli.tables.text import count

TOTAL = frozenset({matching.EQUAL_TOTAL})


@dataclass(frozen=True)
class Series:
    """One line, or the bars of one kind; `errors` are spreads over seeds, None for single runs.

    `group` is what a line shares with others of one colour, `part` what tells it from these.
    """

    label: str
    x: list[float] | list[str]
    y: list[float]
    errors: list[float | None] = field(default_factory=list)
    kind: str = "pruned"
    group: str = ""
    part: str = ""


@dataclass(frozen=True)
class Panel:
    """One set of axes; a text axis makes bars, a numeric one lines.

    `zero`: values are differences, and their axis reaches zero. `apart`: text has a small panel
    for every group of lines.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log: bool = False
    zero: bool = False
    apart: bool = False

    @property
    def bars(self) -> bool:
        """Whether the horizontal axis has names."""
        return any(isinstance(x, str) for one in self.series for x in one.x)

    @property
    def span(self) -> tuple[float, float]:
        """The part of a value axis to show: differences are small beside the values."""
        values = [y for one in self.series for y in one.y] + [0.0] * self.zero
        low, high = min(values), max(values)
        margin = (high - low or abs(high)) * (0.1 if self.zero else 0.5)
        return low - margin if low < 0 or not self.zero else low, high + margin / 2


@dataclass(frozen=True)
class Drawing:
    """One figure of the paper, from the paper's or from our own results."""

    title: str
    panels: list[Panel]


def figure_of(layout: str | None) -> str:
    """Return the figure that belongs to a layout, where none is named."""
    for number, figure in FIGURES.items():
        if layout in figure.layouts:
            return number
    return "1"


def drawing(entries: list[ModelRow], number: str) -> Drawing:
    """Return one of FIGURES from these entries; raise InputError if they have nothing for it."""
    panels = [panel for panel in FIGURES[number].panels(entries) if panel.series]
    if not panels:
        raise InputError(
            f"no token-matched runs for figure {number}", "see table --layout pairs for why"
        )
    shown = [replace(panel, series=list(map(_printable, panel.series))) for panel in panels]
    return Drawing(FIGURES[number].title, shown)


def _printable(one: Series) -> Series:
    """Return a line whose names are printable."""
    x: Any = [printable(x) if isinstance(x, str) else x for x in one.x]
    label, group, part = map(printable, (one.label, one.group, one.part))
    return replace(one, label=label, x=x, group=group, part=part)


def _shown(entries: list[ModelRow]) -> list[Column]:
    """Return what figures show: one loss (or else perplexity), and the average accuracy."""
    columns = columns_of(entries)
    losses = [c for c in columns if c.lower_is_better]
    # a loss before a perplexity, whose differences mean something else at every level
    losses.sort(key=lambda column: column.key.startswith("ppl_"))
    return losses[:1] + [column for column in columns if column is AVERAGE]


def _bars(
    entries: list[ModelRow], settings: frozenset[str], column: Column, title: str
) -> tuple[Panel, Panel]:
    """Return a panel of both models of every pair, and one of their differences."""
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
        for entry, series in ((pruned, kinds["pruned"]), (scratch, kinds[SCRATCH])):
            series.x.append(name)
            series.y.append(float(entry.metrics[column.key].value))
            series.errors.append(entry.metrics[column.key].spread)
        apart.x.append(name)
        apart.y.append(float(cell.value))
    title = f"{title} ({column.heading})"
    both = Panel(title, "", column.heading, [s for s in kinds.values() if s.x])
    advantage = _advantage(column)
    return both, Panel(advantage, "", column.heading, [apart] if apart.x else [], zero=True)


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
    for column in _shown(entries)[-1:]:
        yield _bars(entries, MATCHED, column, "equal retraining tokens")[0]
        yield _bars(entries, TOTAL, column, "equal total budget")[0]


def _figure3(entries: list[ModelRow]) -> Iterator[Panel]:
    unit = "billion tokens" if any(e.source == "paper" for e in entries) else "tokens"
    for column in _shown(entries):
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
                    [_tokens(row, unit) for row in rows],
                    [float(row.metrics[column.key].value) for row in rows],
                    [row.metrics[column.key].spread for row in rows],
                    _kind(rows[0]),
                    group,
                    rows[0].initialization,
                )
            )
        title = f"{column.heading} against tokens"
        yield Panel(title, unit, column.heading, series, log=True, apart=True)


def _kind(entry: ModelRow) -> str:
    """Return how a line is dashed: a parent of unknown training is drawn apart."""
    return SCRATCH if not entry.pruned else "pruned" if entry.before else "released"


def _tokens(entry: ModelRow, unit: str) -> float:
    tokens = float(entry.tokens or 0)
    return tokens / 1e9 if entry.source == "ours" and unit != "tokens" else tokens


def _figure4(entries: list[ModelRow]) -> Iterator[Panel]:
    sizes = {(e.method, e.ratio): e.shape["nonzero"] for e in reference.shapes()}
    large = any(entry.source == "paper" for entry in entries)
    several = len({(e.source, e.tokens) for e in entries if e.pruned}) > 1
    for column in _shown(entries):
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
        unit = "billion parameters" if large else "parameters"
        yield Panel(_advantage(column), unit, column.heading, series, zero=True)


def _figure5(entries: list[ModelRow]) -> Iterator[Panel]:
    for column in _shown(entries)[-1:]:
        yield from _bars(entries, TOTAL, column, "equal total budget")


@dataclass(frozen=True)
class Figure:
    """How one of the paper's figures is made, and for which layouts it stands."""

    title: str
    layouts: tuple[str, ...]
    panels: Callable[[list[ModelRow]], Iterator[Panel]]


FIGURES = {
    "1": Figure("Pruning against training from scratch", ("table2",), _figure1),
    "3": Figure(
        "More tokens",
        ("scaling", "table12", "table13", "table14", "table15"),
        _figure3,
    ),
    "4": Figure("Smaller models", ("table11",), _figure4),
    "5": Figure("Equal total budget", ("table16",), _figure5),
}
