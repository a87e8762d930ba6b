"""The paper's figures as data: panels of bars or lines, drawn by matplotlib or in a terminal.

Figure 1 shows both settings side by side, 3 loss and accuracy against tokens, 4 the advantage of
pruning against size, 5 both models and their difference at equal total budget.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import output
from prunecli.tables import matching, reference
from prunecli.tables.entries import AVERAGE, SCRATCH, ModelRow, columns_of, difference, pairs
from prunecli.tables.layouts import MATCHED
from prunecli.tables.render import Column, count

TOTAL = frozenset({matching.EQUAL_TOTAL})
MARKERS = "osD^vPX*<>"
DASHES = {"scratch": ":", "pruned": "-", "released": "--"}
SHADES = {"scratch": "#d9d9d9", "pruned": "#1f4e79"}  # far apart in grey, too


@dataclass(frozen=True)
class Series:
    """One line, or the bars of one kind; `errors` are spreads over seeds, None for single runs."""

    label: str
    x: list[float] | list[str]
    y: list[float]
    errors: list[float | None] = field(default_factory=list)
    kind: str = "pruned"
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """One set of axes; a text axis makes bars, a numeric one lines."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log: bool = False
    zero: bool = False  # the value axis reaches zero: differences

    @property
    def bars(self) -> bool:
        """Whether the horizontal axis has names."""
        return any(isinstance(x, str) for one in self.series for x in one.x)


@dataclass(frozen=True)
class Drawing:
    """One figure of the paper, from the paper's or from our own figures."""

    title: str
    panels: list[Panel]

    def save(self, path: str) -> None:
        """Draw into a .png, .svg or .pdf file; equal data, equal bytes.

        Raises InputError if matplotlib is not installed.
        """
        pyplot = _matplotlib()
        figure = _draw(pyplot, self)
        try:
            suffix = Path(path).suffix
            # the date of drawing would make equal figures differ
            empty = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[suffix]
            with output.staged(path) as temporary:
                figure.savefig(
                    temporary, format=suffix[1:], dpi=150, metadata=empty, bbox_inches="tight"
                )
        finally:
            pyplot.close(figure)

    def svg(self) -> str:
        """Return the figure as the text of an <svg> element."""
        import io

        pyplot = _matplotlib()
        # a page has headings of its own
        figure, buffer = _draw(pyplot, Drawing("", self.panels)), io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def in_terminal(self, width: int = 100, height: int = 20) -> str:
        """Return the figure as text, one panel below the other."""
        return "\n\n".join(_as_text(panel, width, height) for panel in self.panels)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "figures need matplotlib, which is not installed", "pip install 'prunecli[plot]'"
        ) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "prunecli"
    import matplotlib.pyplot

    return matplotlib.pyplot


def _draw(pyplot: Any, drawing: Drawing) -> Any:
    count = len(drawing.panels)
    figure, axes = pyplot.subplots(1, count, figsize=(5.6 * count, 4.2), squeeze=False)
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
        places = [
            names.index(str(x)) + (index - (len(panel.series) - 1) / 2) * width for x in one.x
        ]
        axis.bar(
            places,
            one.y,
            width,
            yerr=_errors(one),
            label=one.label,
            color=SHADES[one.kind],
            edgecolor="black",
            hatch="//" if one.kind == SCRATCH else None,
        )
    low, high = _span(panel)
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
    if any(y < 0 for one in panel.series for y in one.y):
        axis.axhline(0, color="black", linewidth=0.8)


def _errors(one: Series) -> list[float] | None:
    return [error or 0.0 for error in one.errors] if any(one.errors) else None


def _as_text(panel: Panel, width: int, height: int) -> str:
    try:
        import plotext
    except ImportError:
        raise InputError(
            "figures in the terminal need plotext, which is not installed",
            "pip install 'prunecli[plot]', or name a file: --plot FILE.svg",
        ) from None
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.theme("clear")
    plotext.title(panel.title)
    if panel.bars:
        # lying bars leave room for their names
        names = list(dict.fromkeys(str(x) for one in panel.series for x in one.x))[::-1]
        found = [dict(zip(map(str, one.x), one.y, strict=True)) for one in panel.series]
        values = [[of.get(name, 0.0) for name in names] for of in found]
        labels = [one.label for one in panel.series if one.label] or None
        plotext.plotsize(width, 5 + 2 * len(names) * len(values))
        plotext.multiple_bar(
            names, values, labels=labels, orientation="horizontal", marker=["#", "="][: len(values)]
        )
        plotext.xlim(*_span(panel))
        plotext.xlabel(panel.y_label)
    else:
        plotext.plotsize(width, height)
        groups = list(dict.fromkeys(one.label for one in panel.series))
        for one in panel.series:
            letter = chr(ord("a") + groups.index(one.label) % 26)
            plotext.plot(one.x, one.y, label=one.label, marker=letter)
        plotext.xlabel(panel.x_label)
        plotext.ylabel(panel.y_label)
        if panel.log:
            plotext.xscale("log")
    return str(plotext.uncolorize(plotext.build())).rstrip()


def _span(panel: Panel) -> tuple[float, float]:
    """Return the part of a value axis to show: differences are small beside the values."""
    values = [y for one in panel.series for y in one.y] + [0.0] * panel.zero
    low, high = min(values), max(values)
    margin = (high - low or abs(high)) * (0.1 if panel.zero else 0.5)
    return low - margin if low < 0 or not panel.zero else low, high + margin / 2


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
    return Drawing(FIGURES[number].title, panels)


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
    for pruned, scratch, found, _ in pairs(entries):
        if found not in settings:
            continue
        name: Any = _named(pruned, entries)
        cell = difference(pruned, scratch, column)
        if cell is None or cell.value is None:
            continue
        if name in apart.x:
            # runs that differ in more than what bars are told by
            name = f"{name} ({pruned.name}, {scratch.name})"
        for entry, series in ((pruned, kinds["pruned"]), (scratch, kinds[SCRATCH])):
            series.x.append(name)
            series.y.append(float(entry.measures[column.key].value))
            series.errors.append(entry.measures[column.key].spread)
        apart.x.append(name)
        apart.y.append(float(cell.value))
    both = Panel(title, "", column.heading, [s for s in kinds.values() if s.x])
    better = f"{column.heading}: pruned better by"
    return both, Panel("difference", "", better, [apart] if apart.x else [], zero=True)


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
            if column.key in entry.measures and entry.tokens:
                label = f"{entry.method} {entry.initialization}"
                group = entry.method + (" (ours)" if entry.source == "ours" else "")
                lines.setdefault((group, label), []).append(entry)
        series = []
        for (group, label), found in lines.items():
            found.sort(key=lambda e: float(e.tokens or 0))
            series.append(
                Series(
                    label,
                    [_tokens(e, unit) for e in found],
                    [float(e.measures[column.key].value) for e in found],
                    [e.measures[column.key].spread for e in found],
                    _kind(found[0]),
                    group,
                )
            )
        yield Panel(f"{column.heading} against tokens", unit, column.heading, series, log=True)


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
        for pruned, scratch, found, _ in pairs(entries):
            cell = difference(pruned, scratch, column) if found in MATCHED else None
            key: Any = (pruned.method, pruned.ratio)
            size = pruned.shape.get("nonzero", sizes.get(key))
            if cell is not None and cell.value is not None and size:
                name = f"{pruned.method} {_amount(pruned)}" if several else pruned.method
                point = (size / 1e9 if large else float(size), float(cell.value))
                lines.setdefault(name, []).append(point)
        series = [
            Series(name, [x for x, _ in sorted(points)], [y for _, y in sorted(points)], group=name)
            for name, points in lines.items()
        ]
        better = f"{column.heading}: pruned better by"
        unit = "billion parameters" if large else "parameters"
        yield Panel("advantage of pruning", unit, better, series)


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
