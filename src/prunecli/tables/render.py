"""A table of cells, and how it looks as aligned text, Markdown, CSV, LaTeX and JSON."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from html import escape
from typing import Any

from prunecli.errors import UsageError, suggest
from prunecli.report import printable
from prunecli.tables.text import aligned

FORMATS = ("rich", "md", "csv", "tex", "json")
FORMULA = ("=", "+", "-", "@")  # with which spreadsheets let a formula begin
# what is markup in Markdown wherever it stands; an underscore inside a word is none
MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w))")
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%#_{}$"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "…": r"\dots",
    }
)
GREY = "within one standard deviation of its noise"


Value = str | int | float | Decimal | None


@dataclass(frozen=True)
class Column:
    """One column: its key in JSON and CSV, its heading, how it is printed, and which way is up.

    Attributes:
        unit: what a value is divided by for people; CSV and JSON have it as it is.
        repeats: names a row, so that it leads every block of a table that is folded.
        detail: left out first where a terminal is too narrow.
        subtracted_from: of a difference row, the column of what its value is subtracted from.
    """

    key: str
    heading: str
    style: str = ""
    lower_is_better: bool = False
    unit: float = 1.0
    repeats: bool = False
    detail: bool = False
    subtracted_from: str = ""

    def text(self, cell: "Cell") -> str:
        """Return the value of one of its cells for people."""
        if self.unit != 1 and isinstance(cell.value, int | float):
            cell = replace(cell, value=cell.value / self.unit)
        return cell.text(self.style)


@dataclass(frozen=True)
class Cell:
    """One value, with the spread of its seeds, and what a reader must know of it."""

    value: Value
    spread: float | None = None
    grey: bool = False
    note: str = ""
    signed: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it holds a number."""
        return isinstance(self.value, int | float | Decimal)

    def text(self, style: str) -> str:
        """Return the value for people: as published if it is the paper's, else by `style`."""
        if self.value is None:
            return ""
        if isinstance(self.value, Decimal):
            return format(self.value, "+" if self.signed and self.value else "")
        if not isinstance(self.value, float):
            return printable(str(self.value))
        shown = _plain(self.value, style)
        if self.signed and self.value > 0:
            shown = f"+{shown}"
        return shown if self.spread is None else f"{shown} ± {_plain(self.spread, style)}"


Row = dict[str, "Cell | Value"]


@dataclass
class Table:
    """Rows of cells by column key; `None` where nothing was measured.

    `legend` explains values to whoever reads in a terminal, `whole` says where to find what that
    does not show.
    """

    rows: list[Row]
    columns: tuple[Column, ...]
    title: str = ""
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)
    whole: str = "--format csv"

    def cells(self) -> list[list[Cell]]:
        """Return the cells of every row, in the order of the columns."""
        return [[as_cell(row.get(column.key)) for column in self.columns] for row in self.rows]

    def footnotes(self) -> dict[str, str]:
        """Return a letter for each note of a cell, in the order in which they appear."""
        notes = dict.fromkeys(cell.note for row in self.cells() for cell in row if cell.note)
        return {note: _letters(index) for index, note in enumerate(notes)}

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

    def html(self) -> str:
        """Return the table as HTML, with what a page needs to sort it and to fold it."""
        return _html(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.without_empty().html()

    def without_empty(self) -> "Table":
        """Return a table without the columns that hold nothing, those that name a row excepted."""
        cells = list(zip(*self.cells(), strict=True))
        used = [any(cell.value is not None or cell.note for cell in column) for column in cells]
        kept = [c for c, any_ in zip(self.columns, used, strict=True) if any_ or c.repeats]
        return replace(self, columns=tuple(kept))

    def objects(self) -> list[dict[str, Any]]:
        """Return each row as plain JSON: values by key, and the notes on single cells."""
        return [_object(self.columns, row) for row in self.cells()]


def as_cell(value: "Cell | Value") -> Cell:
    """Return a value as a cell."""
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
    for name, extra in (
        ("spread", {key: cell.spread for key, cell in named if cell.spread is not None}),
        ("within_noise", [key for key, cell in named if cell.grey]),
        ("notes", {key: cell.note for key, cell in named if cell.note}),
    ):
        if extra:
            record[name] = extra
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
    writer.writerow(map(_literal, keys + extra))
    for row in rows:
        record = _object(table.columns, row)
        texts = {
            "spread": "; ".join(f"{k}: {v:.6g}" for k, v in record.get("spread", {}).items()),
            "within_noise": " ".join(record.get("within_noise", [])),
            "notes": "; ".join(f"{k}: {v}" for k, v in record.get("notes", {}).items()),
        }
        values = [cell.text("") if isinstance(cell.value, Decimal) else cell.value for cell in row]
        row_values = values + [texts[name] for name in extra]
        writer.writerow(map(_literal, row_values))
    return text.getvalue().rstrip("\n")


def _literal(value: Value) -> Value:
    """Return a value of CSV that no spreadsheet takes for a formula: such text gets a quote."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        Decimal(text)
    except InvalidOperation:
        return False
    return True


def _unchanged(text: str) -> str:
    return text


def shown_cells(
    table: Table, grey: str, mark: str, escaped: Callable[[str], str] = _unchanged
) -> list[list[str]]:
    """Return the text of every cell as [rows][columns].

    `grey` and `mark` say how noise and notes look in this format, `escaped` makes texts literal.
    """
    letters = table.footnotes()

    def show(cell: Cell, column: Column) -> str:
        text = escaped(column.text(cell))
        if cell.grey:
            text = grey.format(text)
        return text + (mark.format(letters[cell.note]) if cell.note else "")

    return [
        [show(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.cells()
    ]


def notes_below(table: Table, escaped: Callable[[str], str] = _unchanged) -> list[str]:
    """Return the lines below a table: its own notes, then those of single cells."""
    grey = any(cell.grey for row in table.cells() for cell in row)
    notes = {escaped(printable(note)): letter for note, letter in table.footnotes().items()}
    return [
        *(escaped(printable(note)) for note in table.notes),
        *([f"(…) {GREY}"] if grey else []),
        *(f"[{letter}] {note}" for note, letter in notes.items()),
    ]


def _headings(table: Table) -> list[str]:
    return [printable(column.heading) for column in table.columns]


def _text(table: Table) -> str:
    body = aligned(_headings(table), shown_cells(table, "({})", "[{}]"))
    return "\n".join([body, *([""] if notes_below(table) else []), *notes_below(table)])


def _markdown(table: Table) -> str:
    def escaped(text: str) -> str:
        return MARKDOWN.sub(r"\\\1", text)

    headings = [escaped(heading) for heading in _headings(table)]
    cells = shown_cells(table, "({})", "[{}]", escaped)
    lines = [headings, ["---"] * len(table.columns), *cells]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*body, *(f"\n{line}" for line in notes_below(table, escaped))])


def _latex(table: Table) -> str:
    def escaped(text: str) -> str:
        return text.translate(LATEX)

    def line(row: list[str]) -> str:
        return " & ".join(row) + r" \\"

    # commands are put around cells that are escaped already
    plain = Table(table.rows, table.columns)
    cells = [
        [
            escaped(text) if not cell.grey else rf"\textcolor{{gray}}{{{escaped(text)}}}"
            for text, cell in zip(texts, row, strict=True)
        ]
        for texts, row in zip(shown_cells(plain, "{}", "[{}]"), table.cells(), strict=True)
    ]
    body = [r"\toprule", line([escaped(h) for h in _headings(table)]), r"\midrule"]
    start = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    end = [r"\bottomrule", r"\end{tabular}"]
    notes = [rf"\\ \footnotesize {escaped(note)}" for note in notes_below(table)]
    return "\n".join([start, *body, *map(line, cells), *end, *notes])


def _html(table: Table) -> str:
    def escaped(text: str) -> str:
        return escape(printable(text))

    texts = shown_cells(table, "<span class='grey'>({})</span>", "<sup>{}</sup>", escaped)
    headings = list(map(escaped, _headings(table)))
    lines = ["<table>", "<thead><tr>"]
    lines += [f"<th scope='col'>{heading}</th>" for heading in headings]
    lines += ["</tr></thead>", "<tbody>"]
    for row, shown in zip(table.cells(), texts, strict=True):
        cells = []
        for cell, text, heading in zip(row, shown, headings, strict=True):
            number = f" class='number' data-value='{cell.value}'" if cell.is_number else ""
            cells.append(f"<td data-label='{heading}'{number}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table>"]
    return "\n".join([*lines, *(f"<p class='note'>{x}</p>" for x in notes_below(table, escaped))])
