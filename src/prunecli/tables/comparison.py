"""Token-matched pairs, one a row: pruned, scratch, their difference and its interval."""

from prunecli.errors import InputError
from prunecli.tables import matching
from prunecli.tables.entries import SCRATCH, ModelRow, difference, noise, pairs
from prunecli.tables.figures import main_columns
from prunecli.tables.layouts import rows_of_layout
from prunecli.tables.panels import CONFIDENT
from prunecli.tables.render import Column, Row, Table
from prunecli.tables.runs import Runs

SETTINGS = {
    matching.EQUAL_RETRAINING: "equal retraining tokens",
    matching.RELEASED: "equal retraining tokens, released parent",
    matching.EQUAL_TOTAL: "equal total budget",
}
COLUMNS = (
    Column("source", "source", repeats=False),
    Column("method", "method", repeats=True),
    Column("ratio", "ratio", ".3g"),
    Column("setting", "setting"),
    Column("metric", "measured"),
    Column("pruned", "pruned", ".4f"),
    Column(SCRATCH, "scratch", ".4f"),
    Column("difference", "pruned is better by", ".4f"),
    Column("interval", "95 % interval"),
    Column("models", "models"),
)


def pair_table(runs: Runs, paper: str | None) -> Table:
    """Return a row for every token-matched pair and what was measured of both, maybe none."""
    try:
        entries = rows_of_layout(runs, "table16", paper)
    except InputError:
        entries = []
    rows: list[Row] = []
    used: dict[str, None] = {}
    both = len({entry.source for entry in entries}) > 1
    for pruned, scratch, setting, _ in pairs(entries):
        if setting is not None:
            # the paper and others measure on other text
            alike = [entry for entry in entries if entry.source == pruned.source]
            measured = [_row(pruned, scratch, column) for column in main_columns(alike)]
            found = [row for row in measured if row]
            named = {"setting": SETTINGS[setting], "source": pruned.source if both else None}
            rows += [row | named for row in found]
            used |= {f"{SETTINGS[setting]}: {setting}": None} if found else {}
    notes = [*used, "a difference is positive where pruned is better"] if rows else []
    return Table(rows, COLUMNS, notes=notes)


def _row(pruned: ModelRow, scratch: ModelRow, column: Column) -> Row:
    """Return what one metric says of a pair; nothing where they cannot be compared."""
    cell = difference(pruned, scratch, column)
    if cell is None or cell.value is None:
        return {}
    one, other = pruned.metrics[column.key], scratch.metrics[column.key]
    sd, interval = noise(one, other), None
    if sd is not None:
        ends = (float(cell.value) + sign * CONFIDENT * sd for sign in (-1, 1))
        interval = " to ".join(f"{end:+.3g}" for end in ends)
    return {
        "method": pruned.method,
        "ratio": pruned.ratio,
        "metric": column.heading,
        "pruned": one.value,
        SCRATCH: other.value,
        "difference": cell,
        "interval": interval,
        "models": f"{pruned.name}, {scratch.name}" if pruned.source == "ours" else None,
    }


def certain(table: Table) -> str:
    """Say in how many rows of a pair table the interval excludes zero, if any has one."""
    known = [str(row["interval"]).split(" to ") for row in table.rows if row["interval"]]
    if not known:
        return ""
    sure = sum(float(low) * float(high) > 0 for low, high in known)
    return f"Noise does not explain {sure} of {len(known)} differences (95 % interval beside zero)."
