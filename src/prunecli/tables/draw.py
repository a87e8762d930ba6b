"""Figures drawn: into files by matplotlib, as text for a terminal (curves by plotext)."""

import io
from collections.abc import Iterator
from itertools import zip_longest
from math import log10
from pathlib import Path
from textwrap import wrap
from typing import Any

from prunecli.errors import InputError
from prunecli.files import output
from prunecli.tables.entries import SCRATCH
from prunecli.tables.figures import Drawing, Panel, Series
from prunecli.tables.marks import METADATA
from prunecli.tables.text import count, filled

MARKERS = "osD^vPX*<>"
DASHES = {"scratch": ":", "pruned": "-", "released": "--"}
SHADES = {"scratch": "#d9d9d9", "pruned": "#1f4e79"}  # far apart in grey, too
FILLS = {"scratch": "=", "pruned": "#"}
HEIGHT, SMALL = 20, 12  # lines of curves, and of one of several panels of them
TICK = 7  # characters for the number of a tick


def save(drawing: Drawing, path: str) -> None:
    """Draw into a .png, .svg or .pdf file; equal data, equal bytes.

    Raises InputError if matplotlib is not installed.
    """
    pyplot = _matplotlib()
    figure, buffer, suffix = _draw(pyplot, drawing), io.BytesIO(), Path(path).suffix
    try:
        figure.savefig(
            buffer, format=suffix[1:], dpi=150, metadata=METADATA[suffix], bbox_inches="tight"
        )
    finally:
        pyplot.close(figure)
    with output.staged(path) as temporary:
        output.write_bytes(temporary, buffer.getvalue())


def svg(drawing: Drawing) -> str:
    """Return a figure as the text of an <svg> element, without its title."""
    pyplot = _matplotlib()
    # a page has headings of its own
    figure, buffer = _draw(pyplot, Drawing("", drawing.panels)), io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "figures need matplotlib, which is not installed", "pip install 'prunecli[plot]'"
        ) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "prunecli"
    matplotlib.rcParams["text.parse_math"] = False  # names are no formulas
    import matplotlib.pyplot

    return matplotlib.pyplot


def _draw(pyplot: Any, drawing: Drawing) -> Any:
    many = len(drawing.panels)
    figure, axes = pyplot.subplots(1, many, figsize=(5.6 * many, 4.2), squeeze=False)
    for axis, panel in zip(axes[0], drawing.panels, strict=True):
        (_draw_bars if panel.bars else _draw_lines)(axis, panel)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axis.spines[["top", "right"]].set_visible(False)
    # one legend for all panels, beside them
    named = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(drawing.title)
    figure.tight_layout()
    if named:
        figure.legend(
            named.values(),
            named,
            fontsize=8,
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    return figure


def _draw_bars(axis: Any, panel: Panel) -> None:
    names = list(dict.fromkeys(str(x) for one in panel.series for x in one.x))
    width = 0.8 / len(panel.series)
    for index, one in enumerate(panel.series):
        positions = [
            names.index(str(x)) + (index - (len(panel.series) - 1) / 2) * width for x in one.x
        ]
        axis.bar(
            positions,
            one.y,
            width,
            yerr=_errors(one),
            label=one.label,
            color=SHADES[one.kind],
            edgecolor="black",
            hatch="//" if one.kind == SCRATCH else None,
        )
    low, high = panel.span
    axis.set_ylim(low, high)
    if not panel.zero:
        axis.text(0, 1.0, "axis cut", transform=axis.transAxes, fontsize=6)
    else:
        axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)


def _draw_lines(axis: Any, panel: Panel) -> None:
    from matplotlib import colormaps

    groups = list(dict.fromkeys(one.group for one in panel.series))
    for one in panel.series:
        at = groups.index(one.group)
        axis.errorbar(
            one.x,
            one.y,
            yerr=_errors(one),
            label=one.label,
            marker=MARKERS[at % len(MARKERS)],
            linestyle=DASHES[one.kind],
            color=colormaps["cividis"](0.85 * at / max(1, len(groups) - 1)),
            markersize=5,
            capsize=3,
            markerfacecolor="white" if one.kind == SCRATCH else None,
        )
    if panel.log:
        axis.set_xscale("log")
    if panel.zero:
        axis.axhline(0, color="black", linewidth=0.8)


def _errors(one: Series) -> list[float] | None:
    return [error or 0.0 for error in one.errors] if any(one.errors) else None


def as_text(drawing: Drawing, width: int) -> str:
    """Return a figure as text `width` characters wide, one panel below the other.

    Raises InputError for curves if plotext is not installed.
    """
    return "\n\n".join("\n".join(_panel(panel, width)) for panel in drawing.panels)


def _panel(panel: Panel, width: int) -> Iterator[str]:
    yield filled(panel.title, width)
    yield from (_bars if panel.bars else _curves)(panel, width)


def _bars(panel: Panel, width: int) -> Iterator[str]:
    """Yield a row for every bar: whose it is, of which kind, the bar, and its value.

    Names longer than a third of the line are wrapped beside their bars.
    """
    bars: dict[str, list[tuple[str, float]]] = {}
    for one in panel.series:
        for x, y in zip(one.x, one.y, strict=True):
            bars.setdefault(str(x), []).append((one.label, y))
    names = min(max(map(len, bars)), width // 3)
    kinds = max(len(one.label) for one in panel.series)
    values = {y: f"{y:{'+' if panel.zero else ''}.4g}" for one in panel.series for y in one.y}
    room = width - names - kinds - max(map(len, values.values())) - 6
    low, high = panel.span[0], max([*values, 0.0] if panel.zero else values)

    def at(value: float) -> int:
        return round((value - low) / (high - low or 1.0) * room)

    def bar(kind: str, y: float) -> str:
        if not panel.zero:
            return FILLS[kind] * at(y)
        # to either side of the line of zero
        left, middle, right = min(at(0), at(y)), at(0), max(at(0), at(y))
        line = " " * left + "#" * (middle - left) + "|" + "#" * (right - middle)
        return line.ljust(room + 1)

    for name, own in bars.items():
        rows = [f"{kind:<{kinds}}  {bar(kind, y)} {values[y]}" for kind, y in own]
        for label, row in zip_longest(wrap(name, names), rows, fillvalue=""):
            yield f"{label:<{names}}  {row}".rstrip()
    if not panel.zero:
        yield f"(bars start at {low:.3g})"


def _curves(panel: Panel, width: int) -> Iterator[str]:
    """Yield curves as points, a letter for each; small panels stand side by side."""
    parts = list(dict.fromkeys(one.part for one in panel.series))
    letters = {part: chr(ord("a") + index % 26) for index, part in enumerate(parts)}
    if panel.apart:
        groups = dict.fromkeys(one.group for one in panel.series)
        beside = 2 if len(groups) > 1 else 1
        each = (width - 2 * (beside - 1)) // beside
        small = [
            _points(panel, [one for one in panel.series if one.group == group], letters, each)
            for group in groups
        ]
        for start in range(0, len(small), beside):
            for lines in zip_longest(*small[start : start + beside], fillvalue=""):
                yield "  ".join(f"{line:<{each}}" for line in lines).rstrip()
    else:
        yield from _points(panel, panel.series, letters, width)
    named = ", ".join(f"{letter} {part}" for part, letter in letters.items())
    yield filled(f"x: {panel.x_label}; {named}", width)


def _points(panel: Panel, series: list[Series], letters: dict[str, str], width: int) -> list[str]:
    """Return the lines of one set of axes with the points of some series."""
    plotext = _plotext()
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.theme("clear")
    plotext.plotsize(width, SMALL if panel.apart else HEIGHT)
    if panel.apart:
        plotext.title(series[0].group)

    def at(x: Any) -> float:
        return log10(x) if panel.log else float(x)

    for one in series:
        plotext.scatter([at(x) for x in one.x], one.y, marker=letters[one.part])
    xs = sorted({float(x) for one in panel.series for x in one.x})
    ticks = _ticks([at(x) for x in xs], width)
    plotext.xticks([at(xs[i]) for i in ticks], [_tick(xs[i]) for i in ticks])
    plotext.xlim(*_limits([at(x) for x in xs]))
    ys = [y for one in panel.series for y in one.y] + [0.0] * panel.zero
    plotext.ylim(*_limits(ys))
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
