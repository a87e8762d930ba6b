"""A table that fits a terminal: what is empty goes, what is detail may, and lines are folded."""

from collections import defaultdict
from dataclasses import replace

from prunecli.tables.render import Cell, Column, Row, Table, as_cell, notes_below, shown_cells
from prunecli.tables.text import aligned, filled

FEW = 3  # notes of one kind that are printed one by one


def shown(table: Table, format: str, width: int | None) -> str:
    """Return a table as text in one of FORMATS; `rich` fits `width` columns, if there is one."""
    return table.render(format) if width is None or format != "rich" else _fitted(table, width)


def _fitted(table: Table, width: int) -> str:
    table = merged(_summarized(table).without_empty())
    chosen = _chosen(table, width)
    left_out = [column.heading for column in table.columns if column not in chosen]
    if left_out:
        line = f"not shown (see {table.whole}): {', '.join(left_out)}"
        table = replace(table, columns=chosen, legend=[*table.legend, line])
    repeated = sum(column.repeats for column in table.columns) or 1
    body = aligned(_headings(table), shown_cells(table, "({})", "[{}]"), width, repeated)
    notes = [filled(line, width) for line in (*notes_below(table), *table.legend)]
    return "\n".join([body, *[""] * bool(notes), *notes])


def _headings(table: Table) -> list[str]:
    return [column.heading for column in table.columns]


def merged(table: Table) -> Table:
    """Return a table whose difference rows name what is subtracted in the columns of the rows.

    `scratch` compared with `pruned-p200` reads `- pruned-p200`, and 250 with 50 tokens `250 - 50`.
    """
    targets = {column.key: column for column in table.columns}
    rows: list[Row] = []
    for row in table.rows:
        row = dict(row)
        for column in table.columns:
            value = as_cell(row.get(column.key)).value
            if column.subtracted_from and value is not None:
                target = targets[column.subtracted_from]
                one, other = (target.text(as_cell(v)) for v in (row[target.key], value))
                row[target.key] = f"- {other}" if isinstance(value, str) else f"{one} - {other}"
        rows.append(row)
    kept = tuple(column for column in table.columns if not column.subtracted_from)
    return replace(table, rows=rows, columns=kept)


def _summarized(table: Table) -> Table:
    """Return a table with one note in place of many that begin alike."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for note in table.footnotes():
        kinds[note.partition(": ")[0]].add(note)
    short = {
        note: f"{kind} (see {table.whole})"
        for kind, notes in kinds.items()
        for note in notes
        if len(notes) > FEW
    }

    def shortened(cell: Cell) -> Cell:
        return replace(cell, note=short.get(cell.note, cell.note))

    rows: list[Row] = [{k: shortened(as_cell(c)) for k, c in row.items()} for row in table.rows]
    return replace(table, rows=rows)


def _chosen(table: Table, width: int) -> tuple[Column, ...]:
    """Return the columns to show: all but details, and of these in order as many as fit."""
    chosen = [column for column in table.columns if not column.detail]

    def fits(columns: list[Column]) -> bool:
        part = replace(table, columns=tuple(columns))
        lines = aligned(_headings(part), shown_cells(part, "({})", "[{}]")).splitlines()
        return max(map(len, lines)) <= width

    for column in table.columns:
        if column.detail:
            more = [c for c in table.columns if c in chosen or c is column]
            chosen = more if fits(more) else chosen
    return tuple(chosen)
