"""Figures as data: panels of lines, dumbbells or cells, which draw.py and sketch.py draw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prunecli.report import printable

FEW = 5  # lines that one set of axes can hold and still be told apart
CONFIDENT = 1.96  # standard deviations to either side of the middle 95 % of a normal distribution
WHISKERS = "whiskers: 95 % interval of the difference"


@dataclass(frozen=True)
class Series:
    """One line, or the marks of one kind; `errors` are half their whiskers, None for none.

    `group` is what lines share that stand in one small panel; that without a group is in all.
    `part` is what tells a line from the others of its group.
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
    """One set of axes; names on the first axis make dumbbells, numbers lines.

    Attributes:
        log, y_log: whether the scale of an axis is logarithmic.
        zero: values are differences, and their axis reaches zero.
        apart: every group of lines has a small panel of its own.
        lower: less is better.
        behind: lines of other panels, without names, to compare with.
        limits: ends of the value axis, where other panels share it.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log: bool = False
    zero: bool = False
    apart: bool = False
    y_log: bool = False
    lower: bool = False
    behind: tuple[Series, ...] = ()
    limits: tuple[float, float] | None = None

    @property
    def names(self) -> list[str]:
        """The names that stand on the first axis, none where it has numbers."""
        found = (x for one in self.series for x in one.x if isinstance(x, str))
        return list(dict.fromkeys(found))

    @property
    def span(self) -> tuple[float, float]:
        """The part of the value axis to show: that of the values and their whiskers."""
        if self.limits is not None:
            return self.limits
        ends = [0.0] * self.zero
        for one in self.series:
            errors = one.errors or [None] * len(one.y)
            for y, error in zip(one.y, errors, strict=True):
                ends += [y - (error or 0.0), y + (error or 0.0)]
        if self.y_log:
            return min(ends) / 1.1, max(ends) * 1.1
        margin = 0.06 * (max(ends) - min(ends) or abs(max(ends)) or 1.0)
        return min(ends) - margin, max(ends) + margin

    def small(self) -> "list[Panel]":
        """Return the panels that are drawn for it: one, or one for every group of lines."""
        groups = dict.fromkeys(one.group for one in self.series if one.group)
        if not self.apart or len(groups) < 2:
            return [self]
        many = len(groups) > FEW
        return [
            replace(
                self,
                title=f"{group}",
                series=[one for one in self.series if one.group in (group, "")],
                behind=tuple(one for one in self.series if one.group not in (group, ""))
                if many
                else (),
                limits=self.span,
                apart=False,
            )
            for group in groups
        ]


@dataclass(frozen=True)
class Grid:
    """Shares from 0 to 1 as cells [rows][columns]; None where there is nothing any more."""

    title: str
    x_label: str
    y_label: str
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]


@dataclass(frozen=True)
class Drawing:
    """One figure: what is seen in it as its title, and its panels."""

    title: str
    panels: Sequence[Panel | Grid]


def compared(panels: Iterable[Panel]) -> list[Panel]:
    """Return panels of which those of one quantity have one scale."""
    panels = list(panels)

    def same(one: Panel) -> list[Panel]:
        key = (one.y_label, one.zero, one.y_log, bool(one.names))
        return [
            p for p in panels if (p.y_label, p.zero, p.y_log, bool(p.names)) == key and p.series
        ]

    spans = [[other.span for other in same(one)] for one in panels]
    return [
        replace(one, limits=(min(low for low, _ in ends), max(high for _, high in ends)))
        if len(ends) > 1
        else one
        for one, ends in zip(panels, spans, strict=True)
    ]


def shown(drawing: Drawing) -> Drawing:
    """Return a figure whose names are printable."""

    def lines(panel: Panel | Grid) -> Any:
        if isinstance(panel, Grid):
            names = [list(map(printable, names)) for names in (panel.rows, panel.columns)]
            return replace(panel, title=printable(panel.title), rows=names[0], columns=names[1])
        labels = map(printable, (panel.title, panel.x_label, panel.y_label))
        title, x_label, y_label = labels
        series = list(map(line, panel.series))
        return replace(panel, title=title, x_label=x_label, y_label=y_label, series=series)

    return Drawing(printable(drawing.title), [lines(panel) for panel in drawing.panels])


def line(one: Series) -> Series:
    """Return a line whose names are printable."""
    x: Any = [printable(x) if isinstance(x, str) else x for x in one.x]
    label, group, part = map(printable, (one.label, one.group, one.part))
    return replace(one, label=label, x=x, group=group, part=part)
