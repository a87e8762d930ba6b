"""A model and what was measured of it, in the terms of the paper's tables; differences of two.

Losses and perplexities are better when lower, accuracies (in points) when higher; a difference is
positive where the first of two models is better, as in the paper's Tables 11-16.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from math import hypot, sqrt
from statistics import fmean, stdev, variance
from typing import Any

from prunecli.measuring import suite
from prunecli.tables import matching
from prunecli.tables.matching import TrainingHistory
from prunecli.tables.render import Cell, Column

PERPLEXITIES = tuple(f"ppl_{name}" for name in suite.DATA)


# in the order of its tables
SUITE = {
    "winogrande": "WinoG",
    "arc_challenge": "ARC-C",
    "arc_easy": "ARC-E",
    "hellaswag": "HellaS",
    "piqa": "PIQA",
    "sciq": "SciQ",
    "boolq": "BoolQ",
    "openbookqa": "OBQA",
}


LOSS = Column("dclm_loss", "DCLM loss", ".4f", lower_is_better=True)
AVERAGE = Column("average", "average", ".2f")
METRICS = (
    LOSS,
    *(
        Column(key, f"ppl {key.removeprefix('ppl_')}", ".2f", lower_is_better=True)
        for key in PERPLEXITIES
    ),
    *(Column(key, heading, ".2f") for key, heading in SUITE.items()),
    AVERAGE,
)


BASE, SCRATCH, PRUNED = "base", "scratch", "pruned"


Rows = Mapping[str, tuple[float, ...]]  # losses of windows, by seed


@dataclass(frozen=True)
class Metric:
    """One measured value of one model.

    Attributes:
        value: as published (Decimal) if it is the paper's; accuracies in points.
        sd: standard deviation of its noise, None if unknown.
        protocol: what must be equal for two values to be comparable: what it is, and its value.
        windows: losses of the single windows, by which two models on the same text are paired;
            their mean has the noise of `value`.
        seeds: the single runs of a mean over seeds, by seed; empty for a single run.
        spread: standard deviation over seeds, None for a single run.
        lower: whether less is better. accuracy: whether it is that of one task, in points.
        note: what a reader must know.
    """

    value: Decimal | float
    sd: float | None = None
    protocol: tuple[tuple[str, str], ...] = ()
    windows: tuple[float, ...] = ()
    spread: float | None = None
    note: str = ""
    seeds: dict[str, "Metric"] = field(default_factory=dict)
    lower: bool = False
    accuracy: bool = False

    @property
    def rows(self) -> dict[str, tuple[float, ...]]:
        """The windows of every seed, of a single run under no name; empty if one has none."""
        windows = {name: run.windows for name, run in (self.seeds or {"": self}).items()}
        return windows if all(windows.values()) else {}


# the paper's tables of candidate shapes, by what their methods cut
TABLES = {("hidden", "ffn"): "5", ("heads", "ffn"): "6", ("hidden", "heads", "ffn"): "7"}


@dataclass(frozen=True)
class ModelRow:
    """One model (or the mean of several seeds of one run) and its metrics by column key.

    Attributes:
        initialization: `base`, `scratch`, or `pruned-` and what the parent is.
        tokens: trained on after pruning, or from scratch; before: by the parent, None if unknown.
        shape: sizes, params, nonzero and FLOPs.
        integrity_error: why its sidecar cannot be believed, empty if it can.
        seed: that of its last step; `seeds` are how many runs it is the mean of.
        origin: digest of what it was pruned from first, or of a base itself.
    """

    name: str
    method: str
    ratio: Decimal | float | None
    initialization: str
    tokens: Decimal | int | None = None
    before: Decimal | int | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    history: TrainingHistory | None = None
    integrity_error: str = ""
    parent: str = ""
    source: str = "ours"
    seed: str = ""
    seeds: int = 1
    origin: str = ""

    @property
    def pruned(self) -> bool:
        """Whether it came out of a larger model."""
        return self.initialization.startswith(PRUNED)


def comparison_setting(pruned: ModelRow, scratch: ModelRow) -> tuple[str | None, str]:
    """Return in which of the paper's settings two entries match, or None and why they do not."""
    for row in (pruned, scratch):
        if row.integrity_error:
            return None, f"{row.name}: {row.integrity_error}"
    if pruned.source != scratch.source:
        return None, "one is the paper's, the other is not"
    if pruned.history is not None and scratch.history is not None:
        return matching.comparison_setting(pruned.history, scratch.history)
    if not pruned.tokens or not scratch.tokens:
        return None, "the pruned model was not retrained"
    # the paper has token counts only; that these are the same tokens is its word
    if scratch.tokens == pruned.tokens:
        return (matching.EQUAL_RETRAINING if pruned.before else matching.RELEASED), ""
    if pruned.before and scratch.tokens == pruned.before + pruned.tokens:
        return matching.EQUAL_TOTAL, ""
    return None, f"scratch saw {scratch.tokens}, retraining {pruned.tokens} billion tokens"


def pairs(entries: list[ModelRow]) -> Iterator[tuple[ModelRow, ModelRow, str | None, str]]:
    """Yield every pruned entry beside every scratch entry of its method and ratio.

    With them goes in which setting they match, or None and why they do not.
    """
    for scratch in entries:
        for pruned in entries:
            same = (pruned.method, pruned.ratio) == (scratch.method, scratch.ratio)
            if same and pruned.pruned and scratch.initialization == SCRATCH:
                yield pruned, scratch, *comparison_setting(pruned, scratch)


def columns_of(entries: Iterable[ModelRow]) -> tuple[Column, ...]:
    """Return the columns of all metrics: the paper's in its order, then the others by name."""
    metrics = {key: metric for entry in entries for key, metric in entry.metrics.items()}
    known = [column for column in METRICS if column.key in metrics]
    others = sorted(metrics.keys() - {column.key for column in METRICS})
    own = [_own_column(key, metrics[key]) for key in others]
    return tuple([c for c in known if c is not AVERAGE] + own + [c for c in known if c is AVERAGE])


def _own_column(key: str, metric: Metric) -> Column:
    heading = key.replace("loss_", "loss ", 1) if metric.windows or metric.seeds else key
    return Column(key, heading, ".4f" if metric.lower else ".2f", lower_is_better=metric.lower)


def incomparable_because(one: Metric, other: Metric) -> str:
    """Return what keeps two metrics from being comparable, or nothing."""
    ours, theirs = dict(one.protocol), dict(other.protocol)
    return ", ".join(
        f"{name} {ours.get(name, 'unknown')} instead of {theirs.get(name, 'unknown')}"
        for name in dict.fromkeys([*theirs, *ours])
        if ours.get(name) != theirs.get(name)
    )


def difference(row: ModelRow, minus: ModelRow, column: Column) -> Cell | None:
    """Return by how much `row` is better than `minus`, grey if less than the noise of it.

    Empty where one was not measured, with a note where the two are not comparable.
    """
    one, other = row.metrics.get(column.key), minus.metrics.get(column.key)
    if one is None or other is None:
        return None
    if reason := incomparable_because(one, other):
        return Cell(None, note=f"no difference of {column.heading}: {reason}")
    # both are the paper's or both are our own
    better: Any = (
        other.value - one.value  # type: ignore[operator]
        if column.lower_is_better
        else one.value - other.value  # type: ignore[operator]
    )
    sd = noise(one, other)
    note = "; ".join(dict.fromkeys(filter(None, (one.note, other.note))))
    return Cell(better, grey=sd is not None and abs(better) <= sd, note=note, signed=True)


def noise(one: Metric, other: Metric) -> float | None:
    """Return the standard deviation of a difference of two metrics, None if unknown.

    The paper has one deviation per task for differences as such (Table 8). Losses of the same
    windows are paired: what makes a window hard makes it so for both.
    """
    if isinstance(one.value, Decimal):
        return one.sd
    ours, theirs = one.rows, other.rows
    if ours and theirs:
        return _paired(ours, theirs)
    if one.sd is None or other.sd is None:
        return None
    return hypot(one.sd, other.sd)


def _paired(ours: Rows, theirs: Rows) -> float | None:
    """Return the standard error of the difference of two means over the same windows.

    Runs of equal seeds are paired, too. Where the seeds are others, those of either side add what
    they vary by.
    """

    def minus(one: Iterable[float], other: Iterable[float]) -> list[float]:
        return [a - b for a, b in zip(one, other, strict=True)]

    if ours.keys() == theirs.keys():
        return standard_error([minus(ours[seed], theirs[seed]) for seed in ours])
    sides = [list(rows.values()) for rows in (ours, theirs)]
    by_window = standard_error([minus(*map(_over_seeds, sides))])
    return None if by_window is None else sqrt(by_window**2 + sum(map(_of_seeds, sides)))


def standard_error(rows: Sequence[Sequence[float]]) -> float | None:
    """Return the standard error of the mean of figures [seeds, windows]; None for one window.

    Both are drawn at random, and every seed reads the same windows: x_sw = m + a_s + b_w + e_sw.
    The mean of all then varies by var(b) / W + var(a) / S + var(e) / (S W). The variance of the
    windows' means over W estimates the first and the last of these, `_of_seeds` the other: the
    analysis of variance of two crossed random factors.
    """
    means = _over_seeds(rows)
    if len(means) < 2:
        return None
    return sqrt(variance(means) / len(means) + _of_seeds(rows))


def _of_seeds(rows: Sequence[Sequence[float]]) -> float:
    """Return what seeds add to the variance of a mean of figures [S, W]: var(a) / S, at least 0.

    A single run tells nothing of it.
    """
    count, length = len(rows), len(rows[0])
    if count < 2 or length < 2:
        return 0.0
    by_seed, by_window = [fmean(row) for row in rows], _over_seeds(rows)
    centre = fmean(by_seed)
    rest = sum(
        (value - seed - window + centre) ** 2
        for row, seed in zip(rows, by_seed, strict=True)
        for value, window in zip(row, by_window, strict=True)
    )
    residual = rest / ((count - 1) * (length - 1))
    return max(0.0, variance(by_seed) / count - residual / (count * length))


def _over_seeds(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of every window."""
    return [fmean(window) for window in zip(*rows, strict=True)]


def mean_of_tasks(metrics: dict[str, Metric], keys: Iterable[str]) -> Metric | None:
    """Return the mean of task accuracies with the noise that follows, None if one is missing."""
    tasks = [metrics[key] for key in keys if key in metrics]
    if not tasks or len(tasks) != len(list(keys)):
        return None
    sds = [m.sd for m in tasks if m.sd is not None]
    return Metric(
        fmean(float(m.value) for m in tasks),
        sd=sqrt(sum(sd**2 for sd in sds)) / len(tasks) if len(sds) == len(tasks) else None,
        protocol=tuple(
            (f"{key} {name}", value) for key in keys for name, value in metrics[key].protocol
        ),
        note="; ".join(dict.fromkeys(m.note for m in tasks if m.note)),
    )


def _mean(by_seed: dict[str, Metric], total: int) -> Metric:
    """Return the mean of a metric over seeds, of those that were measured in the same way."""
    usual = Counter(metric.protocol for metric in by_seed.values()).most_common(1)[0][0]
    alike = {seed: metric for seed, metric in by_seed.items() if metric.protocol == usual}
    notes = [metric.note for metric in alike.values()]
    if len(alike) < total:
        one = next(iter(alike.values()))
        unlike = [metric for seed, metric in by_seed.items() if seed not in alike]
        others = [incomparable_because(metric, one) for metric in unlike]
        why = "; ".join(dict.fromkeys(others)) or "not measured"
        notes.append(f"{len(alike)} of {total} seeds, the others: {why}")
    note = "; ".join(dict.fromkeys(filter(None, notes)))
    first, *more = alike.values()
    if not more:
        return replace(first, note=note)
    values = [float(metric.value) for metric in alike.values()]
    spread = stdev(values)
    mean = replace(first, value=fmean(values), windows=(), spread=spread, note=note, seeds=alike)
    if mean.rows:
        return replace(mean, sd=standard_error(list(mean.rows.values())))
    sds = [metric.sd for metric in alike.values() if metric.sd is not None]
    # seeds share the items that they are measured on, so their spread alone may be too small
    return replace(mean, sd=max([spread / sqrt(len(values)), *sds]))


def mean_over_seeds(runs: list[ModelRow]) -> ModelRow:
    """Return several seeds of one run as one entry: means, and their spread."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    seeds = [run.seed for run in runs]
    # runs whose seeds differ in an earlier step are no partners of any other
    unique = len(set(seeds)) == len(seeds)
    names = seeds if unique else [f"{run.name} {number}" for number, run in enumerate(runs)]
    metrics = {}
    for key in dict.fromkeys(key for run in runs for key in run.metrics):
        by_seed = {n: r.metrics[key] for n, r in zip(names, runs, strict=True) if key in r.metrics}
        metrics[key] = _mean(by_seed, len(runs))
    return replace(
        first,
        metrics=metrics,
        integrity_error="; ".join(dict.fromkeys(filter(None, (r.integrity_error for r in runs)))),
        seeds=len(runs),
    )
