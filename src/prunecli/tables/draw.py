"""Figures drawn into files and pages by matplotlib.

Colours are apart for colour-blind eyes and in grey, and never alone: marks and dashes say the same.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import output
from prunecli.tables.entries import BASE, SCRATCH
from prunecli.tables.marks import METADATA
from prunecli.tables.panels import WHISKERS, Drawing, Grid, Panel, Series
from prunecli.tables.text import count

# in a page these two follow the colours of its text and its background
INK, PAPER = "#1b1b1c", "#fdfdfe"
FAINT = "#9a9a9b"
PRUNED, UNPRUNED = "#2474b5", "#c4620d"
COLOURS = (PRUNED, "#1d8a66", "#a8479a", "#857000", "#5d5dc2", "#8c5a3c")
MARKERS, DASHES = "os^vPX", ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 2)), (0, (1, 1)))
RELEASED = "released"
BESIDE = 3  # small panels in a row
WIDE, HIGH, SMALL = 4.8, 3.6, 2.9  # inches of a panel; height of a small one
LINE, FRAME = 0.27, 1.3  # inches of a row of names, and of what is around them
NUMBERED = 16  # columns of cells up to which each has its number
SIZE, CHARACTERS = 9, 14.0  # points of text, and how many characters an inch of it has


def save(drawing: Drawing, path: str) -> None:
    """Draw into a .png, .svg or .pdf file; equal data, equal bytes.

    Raises InputError if matplotlib is not installed.
    """
    buffer, suffix = io.BytesIO(), Path(path).suffix
    with _style():
        figure = _whole(drawing)
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=METADATA[suffix])
    with output.staged(path) as temporary:
        output.write_bytes(temporary, buffer.getvalue())


def svgs(drawing: Drawing, name: str) -> Iterator[str]:
    """Yield the panels of a figure as <svg> elements, for a page whose only figure `name` this is.

    Their lines and texts have the colour of the page's text. Raises InputError if matplotlib is not
    installed.
    """
    with _style() as settings:
        # texts stay texts: to be searched and read aloud, and a tenth of the size
        settings["svg.fonttype"] = "none"
        for number, piece in enumerate(one for row in _rows(drawing) for one in row):
            figure = _new(*_size(piece))
            _draw(figure.add_subplot(), piece)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
            text = buffer.getvalue()
            text = text[text.index("<svg") :].replace(INK, "currentColor")
            text = text.replace(PAPER, "var(--paper, #fff)")
            # matplotlib numbers the parts of each drawing alike, a page must not
            text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-{number}-", text)
            yield text.replace("<svg ", f'<svg role="img" aria-label="{_label(piece)}" ', 1)


def _label(piece: Panel | Grid) -> str:
    from html import escape

    return escape(piece.title)


@contextmanager
def _style() -> Iterator[Any]:
    """Set how everything looks, whatever the settings of the program around; yield these."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "figures need matplotlib, which is not installed", "pip install 'prunecli[plot]'"
        ) from None
    lines = {f"{name}.color": INK for name in ("text", "xtick", "ytick")}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                **lines,
                "axes.edgecolor": INK,
                "axes.labelcolor": INK,
                "axes.facecolor": PAPER,
                "figure.facecolor": PAPER,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.titlesize": SIZE,
                "axes.titlelocation": "left",
                "axes.titleweight": "bold",
                "font.size": SIZE,
                "axes.labelsize": SIZE,
                "hatch.color": FAINT,
                "svg.hashsalt": "prunecli",
                "text.parse_math": False,  # names are no formulas
            }
        )
        yield matplotlib.rcParams


def _new(width: float, height: float) -> Any:
    """Return a figure of its own: pyplot would change what a notebook draws with."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _rows(drawing: Drawing) -> list[list[Panel | Grid]]:
    """Return what is drawn, in rows: panels side by side, small ones in rows of their own."""
    pieces: list[list[Panel | Grid]] = [
        list(one.small()) if isinstance(one, Panel) else [one] for one in drawing.panels
    ]
    if all(len(one) == 1 for one in pieces):
        pieces = [[piece for one in pieces for piece in one]]
    return [one[start : start + BESIDE] for one in pieces for start in range(0, len(one), BESIDE)]


def _size(piece: Panel | Grid) -> tuple[float, float]:
    """Return the inches of a panel."""
    if isinstance(piece, Grid):
        columns = len(piece.columns)
        cell = 0.36 if columns <= NUMBERED else 0.14
        return max(WIDE, 1.4 + cell * columns), FRAME + LINE * len(piece.rows)
    if piece.names:
        # long names do not take the room of what they name
        more = max(0, max(map(len, piece.names)) - 20) / CHARACTERS
        return WIDE + more, FRAME + LINE * len(piece.names)
    return WIDE, HIGH if not piece.behind and piece.limits is None else SMALL


def _whole(drawing: Drawing) -> Any:
    """Return a figure of all panels under the title."""
    from textwrap import fill

    rows = _rows(drawing)
    columns = max(map(len, rows))
    sizes = [[_size(piece) for piece in row] for row in rows]
    width = max(sum(w for w, _ in row) for row in sizes)
    heights = [max(h for _, h in row) for row in sizes]
    title = fill(drawing.title, int(width * CHARACTERS * 0.75))
    figure = _new(width, sum(heights) + 0.25 * (1 + title.count("\n")))
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, piece in enumerate(row):
            _draw(figure.add_subplot(grid[i, j]), piece)
    figure.suptitle(title, x=0.01, ha="left", fontsize=SIZE + 2, fontweight="bold")
    return figure


def _draw(axis: Any, piece: Panel | Grid) -> None:
    from textwrap import fill

    if isinstance(piece, Grid):
        _draw_cells(axis, piece)
    elif piece.names:
        _draw_dumbbells(axis, piece)
    else:
        _draw_lines(axis, piece)
    names = piece.rows if isinstance(piece, Grid) else piece.names
    named = bool(names)
    beside = max(map(len, names), default=0) / CHARACTERS
    room = max(20, int((_size(piece)[0] - beside - 0.8) * CHARACTERS))
    # what is up the axis stands above it: turned text is hard to read, and longer than the axis
    above = fill("" if isinstance(piece, Panel) and named else piece.y_label, room)
    axis.set_title(fill(piece.title, room), pad=6 + 1.25 * SIZE * (len(above.splitlines())))
    axis.annotate(above, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points")
    below = "\n".join(fill(line, room) for line in axis.get_xlabel().splitlines())
    axis.set_xlabel(below, loc="left", multialignment="left")


# -- dumbbells -----------------------------------------------------------------------------------


def _draw_dumbbells(axis: Any, panel: Panel) -> None:
    """Draw a row for every name: a mark of each kind, a line between, and whiskers."""
    names = panel.names
    for name in names:
        ends = [y for one in panel.series for x, y in zip(one.x, one.y, strict=True) if x == name]
        ends += [0.0] * panel.zero
        axis.plot([min(ends), max(ends)], [names.index(name)] * 2, color=FAINT, linewidth=2)
    for one in panel.series:
        places = [names.index(str(x)) for x in one.x]
        axis.errorbar(
            one.y,
            places,
            xerr=_errors(one),
            label=one.label,
            linestyle="none",
            ecolor=INK,
            elinewidth=0.9,
            capsize=3,
            zorder=3,
            **_mark(one.kind),
        )
    if panel.zero:
        axis.axvline(0, color=INK, linewidth=0.8)
    if len(panel.series) > 1:
        _key(axis, panel)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(*panel.span)
    axis.grid(axis="x", color=FAINT, alpha=0.35, linewidth=0.6)
    whiskers = any(error for one in panel.series for error in one.errors)
    axis.set_xlabel(panel.y_label + f"\n{WHISKERS}" * whiskers)


def _mark(kind: str) -> dict[str, Any]:
    """Return how a mark of a kind looks: scratch is open, the rest is not."""
    colour = UNPRUNED if kind == SCRATCH else INK if kind == BASE else PRUNED
    return {
        "marker": {SCRATCH: "D", BASE: "*"}.get(kind, "o"),
        "markersize": 10 if kind == BASE else 6,
        "color": colour,
        "markerfacecolor": PAPER if kind == SCRATCH else colour,
        "markeredgewidth": 1.5,
    }


def _key(axis: Any, panel: Panel) -> None:
    """Name the kinds of marks at those of the first row."""
    first = {one.kind: y for one in panel.series for x, y in zip(one.x, one.y, strict=True)
             if x == panel.names[0]}  # fmt: skip
    ends = sorted(first.items(), key=lambda item: item[1])
    for side, (kind, y) in zip((-1, 1), ends, strict=False):
        axis.annotate(
            kind,
            (y, 0),
            (side * 2, 6),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            color=_mark(kind)["color"],
            fontsize=SIZE - 1,
        )


# -- lines ---------------------------------------------------------------------------------------


def _draw_lines(axis: Any, panel: Panel) -> None:
    """Draw lines with their names at their ends, before those of other panels in grey."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if panel.log:
        axis.set_xscale("log")
    if panel.y_log:
        axis.set_yscale("log")
    for one in panel.behind:
        axis.plot(one.x, one.y, color=FAINT, alpha=0.5, linewidth=0.8)
    for index, one in enumerate(panel.series):
        look = _line(one, index)
        axis.errorbar(one.x, one.y, yerr=_errors(one), capsize=3, linewidth=1.6, **look)
    if panel.zero:
        axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylim(*panel.span)
    for scale in [axis.xaxis] * panel.log + [axis.yaxis] * panel.y_log:
        scale.set_minor_formatter(NullFormatter())
        scale.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    xs = sorted({float(x) for one in (*panel.series, *panel.behind) for x in one.x})
    if panel.log and len(xs) > 1:
        _own_ticks(axis.xaxis, xs)
    if panel.y_log:
        low, high = panel.span
        _own_ticks(axis.yaxis, _round_values(low, high))
    if not panel.log and xs and min(xs) >= 1e4:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.grid(color=FAINT, alpha=0.35, linewidth=0.6)
    axis.set_xlabel(panel.x_label)
    _name_ends(axis, panel)


def _own_ticks(scale: Any, places: list[float]) -> None:
    """Set ticks at these places of a logarithmic scale, as many as have room."""
    from math import log

    kept: list[float] = []
    room = log(places[-1] / places[0]) / 6
    for place in places:
        if not kept or log(place / kept[-1]) >= room:
            kept.append(place)
    scale.set_ticks(kept, [_number(place) for place in kept])
    scale.set_ticks([], minor=True)


def _round_values(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 and their like between two ends, these themselves where there are few."""
    from math import floor, log10

    start = floor(log10(low))
    steps = [
        digit * 10.0**power
        for power in range(start, floor(log10(high)) + 1)
        for digit in (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ]
    found = [value for value in steps if low <= value <= high]
    return found if len(found) > 1 else [low, high]


def _number(value: float) -> str:
    return count(value) if value >= 1e3 else f"{value:.3g}"


def _line(one: Series, index: int) -> dict[str, Any]:
    """Return how a line looks: marks without one where it stands in every panel."""
    if one.kind in (SCRATCH, BASE):
        return _mark(one.kind) | {"linestyle": ":" if one.group else "none"}
    dash: Any = "--" if one.kind == RELEASED else "-"
    if one.part == one.group:  # beside lines of other groups
        dash = DASHES[index % len(DASHES)]
    return {
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": dash,
    }


def _name_ends(axis: Any, panel: Panel) -> None:
    """Write the name of every line beside its end, apart where ends lie close."""
    if len({one.part for one in panel.series}) < 2:
        return
    low, high = panel.span
    figure = axis.get_figure()
    height = figure.get_size_inches()[1] if panel.limits is None else SMALL
    step = 1.35 * SIZE / 72 / (height * 0.68)

    def share(y: float) -> float:
        from math import log

        return log(y / low) / log(high / low) if panel.y_log else (y - low) / (high - low)

    ends = []
    for index, one in enumerate(panel.series):
        at = max(range(len(one.x)), key=lambda i: float(one.x[i]))
        ends.append((share(one.y[at]), one.part, _line(one, index)["color"]))
    ends.sort(key=lambda end: end[:2])
    places = _spread([end[0] for end in ends], step)
    for place, (_, name, colour) in zip(places, ends, strict=True):
        axis.text(
            1.02,
            place,
            name,
            transform=axis.transAxes,
            color=colour,
            va="center",
            fontsize=SIZE - 1,
        )


def _spread(wanted: list[float], step: float) -> list[float]:
    """Return ascending places at least `step` apart, as near to those wanted as their means are."""
    groups: list[list[float]] = []  # those that touch stand around their mean
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], step) + step > _bottom(groups[-1], step):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, step) + i * step for group in groups for i in range(len(group))]


def _bottom(group: list[float], step: float) -> float:
    return sum(group) / len(group) - step * (len(group) - 1) / 2


def _top(group: list[float], step: float) -> float:
    return _bottom(group, step) + step * (len(group) - 1)


def _errors(one: Series) -> list[float] | None:
    return [error or 0.0 for error in one.errors] if any(one.errors) else None


# -- cells ---------------------------------------------------------------------------------------


def _draw_cells(axis: Any, grid: Grid) -> None:
    """Draw every share as a cell, darker for more, with its number where there is room."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["Blues"]
    for i, row in enumerate(grid.cells):
        for j, cell in enumerate(row):
            gone = cell is None
            axis.add_patch(
                Rectangle(
                    (j - 0.5, i - 0.5),
                    1,
                    1,
                    facecolor=PAPER if cell is None else colours(0.05 + 0.75 * cell),
                    edgecolor=FAINT,
                    linewidth=0.4,
                    hatch="////" if gone else None,
                )
            )
            if cell is not None and len(grid.columns) <= NUMBERED:
                # the cells keep their colours in a dark page, so do their numbers
                dark = "#ffffff" if cell > 0.6 else "#1a1a1a"
                text = f"{100 * cell:.0f}"
                axis.text(j, i, text, ha="center", va="center", color=dark, fontsize=SIZE - 2)
    every = max(1, len(grid.columns) // NUMBERED)
    places = range(0, len(grid.columns), every)
    axis.set_xticks(places, [grid.columns[i] for i in places])
    axis.set_yticks(range(len(grid.rows)), grid.rows)
    axis.set_xlim(-0.5, len(grid.columns) - 0.5)
    axis.set_ylim(len(grid.rows) - 0.5, -0.5)
    axis.set_box_aspect(LINE * len(grid.rows) / (_size(grid)[0] - FRAME))
    axis.set_anchor("NW")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    removed = any(cell is None for row in grid.cells for cell in row)
    said = "darker: more is kept, in %" + "; hatched: removed" * removed
    axis.set_xlabel(f"{grid.x_label}\n{said}")
