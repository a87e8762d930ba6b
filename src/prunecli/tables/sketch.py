"""Figures as text for a terminal: dumbbells and cells as characters, curves by plotext."""

from collections.abc import Iterator
from itertools import zip_longest
from math import log10
from textwrap import wrap
from typing import Any

from prunecli.errors import InputError
from prunecli.tables.entries import BASE, SCRATCH
from prunecli.tables.panels import WHISKERS, Drawing, Grid, Panel
from prunecli.tables.text import count, filled

MARKS = {SCRATCH: "o", BASE: "*"}  # anything else is #
HEIGHT, SMALL = 20, 12  # lines of curves, and of one of several panels of them
TICK = 7  # characters for the number of a tick
FULL = "#"  # a cell of which all is kept; others show tenths, and what is removed a dot
CELLS = "a digit: tenths kept; #: all; .: removed"


def as_text(drawing: Drawing, width: int) -> str:
    """Return a figure as text `width` characters wide, one panel below the other.

    Raises InputError for curves if plotext is not installed.
    """
    title = [filled(drawing.title, width)] * bool(drawing.title)
    return "\n\n".join([*title, *("\n".join(_panel(one, width)) for one in drawing.panels)])


def _panel(panel: Panel | Grid, width: int) -> Iterator[str]:
    yield filled(panel.title, width)
    if isinstance(panel, Grid):
        yield from _cells(panel, width)
    else:
        yield from (_dumbbells if panel.names else _curves)(panel, width)


# -- dumbbells -----------------------------------------------------------------------------------


def _dumbbells(panel: Panel, width: int) -> Iterator[str]:
    """Yield a row for every name: a mark for each kind, a line between, and the values.

    Names longer than a third of the line are wrapped beside their marks.
    """
    values: dict[str, list[tuple[str, float, float | None]]] = {}
    for one in panel.series:
        errors = one.errors or [None] * len(one.y)
        for x, y, error in zip(one.x, one.y, errors, strict=True):
            values.setdefault(str(x), []).append((one.kind, y, error))
    texts = {
        name: "  ".join(
            f"{y:{'+' if panel.zero else ''}.4g}" + (f" ±{error:.2g}" if error else "")
            for _, y, error in own
        )
        for name, own in values.items()
    }
    names = min(max(map(len, values)), width // 3)
    room = width - names - max(map(len, texts.values())) - 4
    low, high = panel.span

    def at(value: float) -> int:
        return round((value - low) / (high - low or 1.0) * (room - 1))

    for name, own in values.items():
        places = [at(y) for _, y, _ in own] + [at(0.0)] * panel.zero
        line = [" "] * room
        line[min(places) : max(places)] = "-" * (max(places) - min(places))
        if panel.zero:
            line[at(0.0)] = "|"
        for kind, y, _ in own:
            line[at(y)] = MARKS.get(kind, "#")
        row = f"{''.join(line)}  {texts[name]}"
        for label, part in zip_longest(wrap(name, names), [row], fillvalue=""):
            yield f"{label:<{names}}  {part}".rstrip()
    kinds = [f"{MARKS.get(one.kind, '#')} {one.label}" for one in panel.series if one.label]
    ends = f"{low:.4g} to {high:.4g}"
    whiskers = [f"±: {WHISKERS.partition(': ')[2]}"] * any(
        error for own in values.values() for _, _, error in own
    )
    yield filled("; ".join([*kinds, f"{panel.y_label}, from {ends}", *whiskers]), width)


# -- cells ---------------------------------------------------------------------------------------


def _cells(grid: Grid, width: int) -> Iterator[str]:
    """Yield a row for every row of a grid, a character for each cell, in blocks that fit."""
    names = min(max(map(len, grid.rows)), width // 3)
    room = width - names - 2
    for start in range(0, len(grid.columns), room):
        stop = min(start + room, len(grid.columns))
        for name, row in zip(grid.rows, grid.cells, strict=True):
            yield f"{name[:names]:<{names}}  {''.join(map(_cell, row[start:stop]))}"
        first, last = grid.columns[start], grid.columns[stop - 1]
        yield filled(f"{grid.x_label} {first} to {last}; {CELLS}", width)


def _cell(share: float | None) -> str:
    if share is None:
        return "."
    return FULL if share >= 1 else str(int(10 * share))


# -- curves --------------------------------------------------------------------------------------


def _curves(panel: Panel, width: int) -> Iterator[str]:
    """Yield curves as points, a letter for each; small panels stand side by side."""
    parts = list(dict.fromkeys(one.part for one in panel.series))
    letters = {part: chr(ord("a") + index % 26) for index, part in enumerate(parts)}
    panels = panel.small()
    beside = 2 if len(panels) > 1 else 1
    each = (width - 2 * (beside - 1)) // beside
    small = [_points(one, letters, each, panel if beside > 1 else None) for one in panels]
    for start in range(0, len(small), beside):
        for lines in zip_longest(*small[start : start + beside], fillvalue=""):
            yield "  ".join(f"{line:<{each}}" for line in lines).rstrip()
    named = ", ".join(f"{letter} {part}" for part, letter in letters.items())
    yield filled(f"x: {panel.x_label}; y: {panel.y_label}; {named}", width)


def _points(panel: Panel, letters: dict[str, str], width: int, all_: Panel | None) -> list[str]:
    """Return the lines of one set of axes; as one of the small panels of `all_` it has a title."""
    plotext = _plotext()
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.theme("clear")
    plotext.plotsize(width, HEIGHT if all_ is None else SMALL)
    if all_ is not None:
        plotext.title(panel.title)
    shown = all_ or panel

    def at(x: Any) -> float:
        return log10(x) if panel.log else float(x)

    def up(y: float) -> float:
        return log10(y) if panel.y_log else y

    for one in panel.series:
        points = ([at(x) for x in one.x], [up(y) for y in one.y])
        plotext.scatter(*points, marker=letters[one.part])
    xs = sorted({float(x) for one in shown.series for x in one.x})
    ticks = _ticks([at(x) for x in xs], width)
    plotext.xticks([at(xs[i]) for i in ticks], [_tick(xs[i]) for i in ticks])
    plotext.xlim(*_limits([at(x) for x in xs]))
    ys = [y for one in shown.series for y in one.y] + [0.0] * panel.zero
    if panel.y_log:
        low, high = min(ys), max(ys)
        places = [low, (low * high) ** 0.5, high] if low < high else [low]
        plotext.yticks([up(y) for y in places], [_tick(y) for y in places])
    plotext.ylim(*_limits([up(y) for y in ys]))
    if panel.zero:
        plotext.hline(0.0)
    return [line.rstrip() for line in str(plotext.uncolorize(plotext.build())).splitlines()]


def _limits(values: list[float]) -> tuple[float, float]:
    """Return the ends of an axis, apart where all values are one."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _ticks(places: list[float], width: int) -> list[int]:
    """Return which of these ascending places get a tick: those whose numbers do not collide."""
    scale = width / (places[-1] - places[0] or 1.0)
    kept = [0]
    for index, place in enumerate(places):
        if (place - places[kept[-1]]) * scale > TICK and (places[-1] - place) * scale > TICK:
            kept.append(index)
    return [*kept, len(places) - 1] if len(places) > 1 else kept


def _tick(x: float) -> str:
    return count(x) if x >= 1e3 else f"{x:.3g}"


def _plotext() -> Any:
    try:
        import plotext
    except ImportError:
        raise InputError(
            "curves in the terminal need plotext, which is not installed",
            "pip install 'prunecli[plot]', or name a file: --plot FILE.svg",
        ) from None
    return plotext
