"""A table of cells, and how it looks as aligned text, Markdown, CSV, LaTeX, JSON and HTML."""

import csv
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from prunecli.errors import UsageError, suggest

FORMATS = ("rich", "md", "csv", "tex", "json")
GREY = "within one standard deviation of its noise"


Value = str | int | float | Decimal | None


@dataclass(frozen=True)
class Column:
    """One column: its key in JSON and CSV, its heading, how it is printed, and which way is up."""

    key: str
    heading: str
    style: str = ""
    lower_is_better: bool = False


@dataclass(frozen=True)
class Cell:
    """One value, with the spread of its seeds, and what a reader must know of it."""

    value: Value
    spread: float | None = None
    grey: bool = False
    note: str = ""
    signed: bool = False

    def text(self, style: str) -> str:
        """Return the value for people: as printed if it came from print, else by `style`."""
        if self.value is None:
            return ""
        if isinstance(self.value, Decimal):
            return format(self.value, "+" if self.signed and self.value else "")
        if not isinstance(self.value, float):
            return str(self.value)
        shown = _plain(self.value, style)
        if self.signed and self.value > 0:
            shown = f"+{shown}"
        return shown if self.spread is None else f"{shown} ± {_plain(self.spread, style)}"


Row = dict[str, "Cell | Value"]


@dataclass
class Table:
    """Rows of cells by column key; `None` where nothing was measured."""

    rows: list[Row]
    columns: tuple[Column, ...]
    title: str = ""
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[list[Cell]]:
        """Return the cells of every row, in the order of the columns."""
        return [[_cell(row.get(column.key)) for column in self.columns] for row in self.rows]

    def footnotes(self) -> dict[str, str]:
        """Return a letter for each note of a cell, in the order in which they appear."""
        found = dict.fromkeys(cell.note for row in self.cells() for cell in row if cell.note)
        return {note: _letters(index) for index, note in enumerate(found)}

    def render(self, format: str) -> str:
        """Return the table as text; raise UsageError for a format that is none of FORMATS."""
        if format not in FORMATS:
            raise UsageError(f"unknown format '{format}'{suggest(format, list(FORMATS))}")
        makers: dict[str, Callable[[Table], str]] = {
            "rich": _text,
            "md": _markdown,
            "csv": _csv,
            "tex": _latex,
            "json": lambda table: json.dumps(table.objects(), indent=1),
        }
        return makers[format](self)

    def objects(self) -> list[dict[str, Any]]:
        """Return each row as plain JSON: values by key, and what is told of single cells."""
        return [_object(self.columns, row) for row in self.cells()]


def _cell(value: "Cell | Value") -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _plain(value: float, style: str) -> str:
    # plain digits, whatever the size
    return format(value, style) if style.endswith("f") else format(Decimal(f"{value:{style}}"), "f")


def _letters(index: int) -> str:
    more, last = divmod(index, 26)
    return (_letters(more - 1) if more else "") + chr(ord("a") + last)


def _object(columns: tuple[Column, ...], cells: list[Cell]) -> dict[str, Any]:
    named = [(column.key, cell) for column, cell in zip(columns, cells, strict=True)]
    record: dict[str, Any] = {
        key: float(cell.value) if isinstance(cell.value, Decimal) else cell.value
        for key, cell in named
    }
    for name, found in (
        ("spread", {key: cell.spread for key, cell in named if cell.spread is not None}),
        ("within_noise", [key for key, cell in named if cell.grey]),
        ("notes", {key: cell.note for key, cell in named if cell.note}),
    ):
        if found:
            record[name] = found
    return record


def _csv(table: Table) -> str:
    """Printed precision, empty cells where nothing was measured; notes in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = table.cells()
    keys = [column.key for column in table.columns]
    greyed = any(cell.grey for row in rows for cell in row)
    spread = any(cell.spread is not None for row in rows for cell in row)
    noted = any(cell.note for row in rows for cell in row)
    extra = ["spread"] * spread + ["within_noise"] * greyed + ["notes"] * noted
    writer.writerow(keys + extra)
    for row in rows:
        record = _object(table.columns, row)
        told = {
            "spread": "; ".join(f"{k}: {v:.6g}" for k, v in record.get("spread", {}).items()),
            "within_noise": " ".join(record.get("within_noise", [])),
            "notes": "; ".join(f"{k}: {v}" for k, v in record.get("notes", {}).items()),
        }
        values = [cell.text("") if isinstance(cell.value, Decimal) else cell.value for cell in row]
        writer.writerow(values + [told[name] for name in extra])
    return text.getvalue().rstrip("\n")


def _shown(table: Table, grey: str, mark: str) -> list[list[str]]:
    """Return cells as text; `grey` and `mark` say how noise and notes look in this format."""
    letters = table.footnotes()

    def show(cell: Cell, column: Column) -> str:
        text = cell.text(column.style)
        if cell.grey:
            text = grey.format(text)
        return text + (mark.format(letters[cell.note]) if cell.note else "")

    return [
        [show(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.cells()
    ]


def _told(table: Table) -> list[str]:
    """Return the lines below a table: its own notes, then those of single cells."""
    grey = any(cell.grey for row in table.cells() for cell in row)
    return [
        *table.notes,
        *([f"(…) {GREY}"] if grey else []),
        *(f"[{letter}] {note}" for note, letter in table.footnotes().items()),
    ]


def _headings(table: Table) -> list[str]:
    return [column.heading for column in table.columns]


def _text(table: Table) -> str:
    body = aligned(_headings(table), _shown(table, "({})", "[{}]"))
    return "\n".join([body, *([""] if _told(table) else []), *_told(table)])


def _markdown(table: Table) -> str:
    cells = _shown(table, "({})", "[{}]")
    lines = [_headings(table), ["---"] * len(table.columns), *cells]
    body = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([*body, *(f"\n{line}" for line in _told(table))])


def _latex(table: Table) -> str:
    def escaped(text: str) -> str:
        for sign in "&%#_":
            text = text.replace(sign, f"\\{sign}")
        return text.replace("±", r"$\pm$").replace("…", r"\dots")

    def line(row: list[str]) -> str:
        return " & ".join(row) + r" \\"

    # commands are put around cells that are escaped already
    plain = Table(table.rows, table.columns)
    cells = [
        [
            escaped(text) if not cell.grey else rf"\textcolor{{gray}}{{{escaped(text)}}}"
            for text, cell in zip(texts, row, strict=True)
        ]
        for texts, row in zip(_shown(plain, "{}", "[{}]"), table.cells(), strict=True)
    ]
    body = [r"\toprule", line([escaped(h) for h in _headings(table)]), r"\midrule"]
    start = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    end = [r"\bottomrule", r"\end{tabular}"]
    notes = [rf"\\ \footnotesize {escaped(note)}" for note in _told(table)]
    return "\n".join([start, *body, *map(line, cells), *end, *notes])


def as_html(table: Table) -> str:
    """Return a <table> with its notes; values inside one standard deviation have class `grey`."""
    letters = table.footnotes()

    def cell(found: Cell, column: Column) -> str:
        number = isinstance(found.value, int | float | Decimal)
        names = " ".join(["number"] * number + ["grey"] * found.grey)
        mark = f"<sup>{letters[found.note]}</sup>" if found.note else ""
        return f'<td class="{names}">{html.escape(found.text(column.style))}{mark}</td>'

    def row(cells: list[Cell]) -> str:
        return "<tr>" + "".join(map(cell, cells, table.columns)) + "</tr>"

    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in _headings(table))
    notes = "".join(f"<p class='note'>{html.escape(line)}</p>" for line in _told(table))
    body = "\n".join(map(row, table.cells()))
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>{notes}"


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
        float(cell.partition("[")[0].partition(" ±")[0].strip("()") or "0")
    except ValueError:
        return False
    return True


def count(tokens: float) -> str:
    """Return a count for people: three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return f"{tokens:.0f}"
