"""Figure `sweep`: pruned models that were not retrained, by ratio and by size.

The first panel has perplexity against ratio for every method, the second loss against size, with
the parent and the scratch twins in it. Only values that were measured alike are shown.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import exp, isfinite, log

from prunecli.tables.entries import BASE, SCRATCH, ModelRow, columns_of
from prunecli.tables.panels import Panel, Series
from prunecli.tables.render import Column
from prunecli.tables.runs import Runs
from prunecli.tables.text import quantity

PARENT = "parent"
LARGEST = 700.0  # a loss beyond which a perplexity is no number


def entries(runs: Runs) -> list[ModelRow]:
    """Return the models that were pruned only, their parents and their trained scratch twins."""
    pruned = [row for row in runs.rows if row.pruned and not row.tokens]
    origins = {row.origin for row in pruned}
    cuts = {(row.method, row.ratio) for row in pruned}
    parents = [row for row in runs.rows if row.initialization == BASE and row.origin in origins]
    twins = {
        row.name: row
        for row in runs.rows
        if row.initialization == SCRATCH and row.tokens and (row.method, row.ratio) in cuts
    }
    return [*pruned, *parents, *twins.values()]


def panels(rows: list[ModelRow]) -> Iterator[Panel]:
    """Yield perplexity against ratio, and loss against size."""
    column = _column(rows)
    if column is None:
        return
    measured = _alike(rows, column)
    parents = [row for row in measured if row.initialization == BASE]
    pruned = _named([row for row in measured if row.pruned], parents)
    if not any(row.ratio is not None for rows in pruned.values() for row in rows):
        return
    sizes = [row for row in measured if row.shape.get("nonzero")]
    twins = [row for row in sizes if row.initialization == SCRATCH]
    lines = [_line(name, rows, column, "ratio", True) for name, rows in pruned.items()]
    lines.append(_marks(PARENT, BASE, parents, column, "ratio", True))
    source = column.heading.removeprefix("loss ").removeprefix("ppl ").removesuffix(" loss")
    yield Panel(
        f"perplexity by ratio, not retrained ({source})",
        "ratio: share of the block weights that is removed or zero",
        f"perplexity ({source}; lower is better)",
        [one for one in lines if one.x],
        apart=True,
        y_log=True,
        lower=True,
    )
    label = quantity("loss_", f"loss on {source}", True)
    lines = [_line(name, rows, column, "nonzero", False) for name, rows in pruned.items()]
    marks = [
        _marks("scratch, trained", SCRATCH, twins, column, "nonzero", False),
        _marks(PARENT, BASE, [row for row in sizes if row in parents], column, "nonzero", False),
    ]
    series = [one for one in (*lines, *marks) if one.x]
    title, unit = f"loss by size ({source})", "parameters that are not zero"
    yield Panel(title, unit, label, series, log=True, apart=True, lower=True)


def says(shown: list[Panel]) -> str:
    """Say which method is best at the ratio that most methods have."""
    lines = [one for one in shown[0].series if one.kind != BASE]
    ratios = Counter(x for one in lines for x in set(map(float, one.x)))
    at = max(ratios, key=lambda ratio: (ratios[ratio], ratio))
    values = {
        one.label: min(y for x, y in zip(one.x, one.y, strict=True) if x == at)
        for one in lines
        if at in one.x
    }
    best = min(values, key=lambda name: values[name])
    parent = next((one.y for one in shown[0].series if one.kind == BASE), [])
    dense = f", the parent {min(parent):.4g}" if parent else ""
    among = f" of {len(values)} methods" if len(values) > 1 else ""
    best_ = "has the lowest perplexity" if len(values) > 1 else "has perplexity"
    return f"At ratio {at:.3g}, {best} {best_}{among}: {values[best]:.4g}{dense}"


def _column(rows: list[ModelRow]) -> Column | None:
    """Return the loss or perplexity that most models have, the first of equals."""
    texts = [
        column
        for column in columns_of(rows)
        if column.lower_is_better and column.key.startswith(("loss_", "ppl_", "dclm_loss"))
    ]
    return max(texts, key=lambda c: sum(c.key in row.metrics for row in rows), default=None)


def _alike(rows: list[ModelRow], column: Column) -> list[ModelRow]:
    """Return the models whose loss was measured as most are, and is a number of a perplexity."""
    having = [row for row in rows if column.key in row.metrics]
    usual = Counter(row.metrics[column.key].protocol for row in having).most_common(1)[0][0]
    return [
        row
        for row in having
        if row.metrics[column.key].protocol == usual and _loss(row, column) < LARGEST
    ]


def _named(pruned: list[ModelRow], parents: list[ModelRow]) -> dict[str, list[ModelRow]]:
    """Return the models of every line, by its method, and by its parent where there are several."""
    names = {row.origin: row.name for row in parents}
    several = len({row.origin for row in pruned}) > 1
    lines: dict[str, list[ModelRow]] = {}
    for row in sorted(pruned, key=lambda row: (row.method, row.origin)):
        parent = f" of {names.get(row.origin, row.origin[:8])}" if several else ""
        lines.setdefault(f"{row.method}{parent}", []).append(row)
    return lines


def _loss(row: ModelRow, column: Column) -> float:
    value = float(row.metrics[column.key].value)
    if not column.key.startswith("ppl_"):
        return value
    return log(value) if value > 0 and isfinite(value) else LARGEST


def _line(name: str, rows: list[ModelRow], column: Column, by: str, ppl: bool) -> Series:
    """Return the line of a method: by ratio or by size, of perplexities or of losses."""
    points: list[tuple[float, float, float | None]] = []
    for row in rows:
        x = row.ratio if by == "ratio" else row.shape.get(by)
        spread, loss = row.metrics[column.key].spread, _loss(row, column)
        if x is not None:
            # a spread of perplexities is asymmetric on their scale, so losses alone have one
            points.append((float(x), exp(loss) if ppl else loss, None if ppl else spread))
    points.sort(key=lambda point: point[:2])
    x, y, errors = [p[0] for p in points], [p[1] for p in points], [p[2] for p in points]
    return Series(name, x, y, errors, group=name, part=name)


def _marks(
    name: str, kind: str, rows: list[ModelRow], column: Column, by: str, ppl: bool
) -> Series:
    """Return marks that stand in every panel."""
    return replace(_line(name, rows, column, by, ppl), kind=kind, group="")
