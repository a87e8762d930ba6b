#!/usr/bin/env python3
"""The study's page, from the sidecars of its runs alone.

    generate.py SIDECARS [OUT.md [README.md]]

README.md gets three sentences of it, between two comments that are there. Every finding of the
paper (arXiv 2606.14150) is a difference of held-out losses. Runs of one seed are paired. Runs that
are not of the paper's design lie in `beyond` beside SIDECARS. Intervals are Student's, at 95 %,
over seeds; power is that of the paired test at 5 %, from the noncentral F distribution (scipy,
which lm-eval brings).
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill

from scipy.optimize import brentq
from scipy.stats import chi2, ncf, t

from prunecli.errors import InputError
from prunecli.methods import registry
from prunecli.tables import matching
from prunecli.tables.collect import Models, collect
from prunecli.tables.entries import AVERAGE, Column, ModelRow, columns_of, pairs
from prunecli.tables.metrics import metrics_of
from prunecli.tables.runs import Runs
from prunecli.tables.table import TableRequest, table

LEVEL, POWER = 0.95, 0.8
# granularities of the paper, from coarse to fine
UNITS = ("layers", "channels", "weights")
POINTS = 8  # of the parent's curve

Losses = dict[str, float]  # by seed


@dataclass(frozen=True)
class Effect:
    """A difference over seeds, positive where the finding says so: mean, interval, power."""

    by_seed: tuple[float, ...]

    @classmethod
    def of(cls, better: Losses, worse: Losses) -> "Effect":
        """Return by how much one loss is lower than another, seed by seed."""
        return cls(tuple(worse[seed] - better[seed] for seed in better if seed in worse))

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.by_seed)

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for one seed."""
        return stdev(self.by_seed) / sqrt(len(self.by_seed)) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the mean; unbounded for one seed."""
        if self.error is None:
            return -inf, inf
        half = float(t.ppf((1 + LEVEL) / 2, len(self.by_seed) - 1)) * self.error
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> str:
        """Whether the finding holds."""
        low, high = self.interval
        if low == -inf:
            return "one seed"
        return "holds" if low > 0 else "the reverse" if high < 0 else "undecided"

    def told(self, sign: int = 1) -> str:
        """Return the mean and its interval, in a sentence; with -1, those of the reverse."""
        low, high = sorted(sign * end for end in self.interval)
        plus = "" if low > 0 else "+"
        return f"{sign * self.mean:{plus}.2f} ({low:{plus}.2f} to {high:{plus}.2f})"

    @property
    def chance(self) -> float:
        """The p-value of the paired test; 1 for one seed."""
        if self.error is None:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / self.error, len(self.by_seed) - 1))

    def power(self, shift: float) -> float:
        """Return the chance that the test finds a true difference of so many standard errors."""
        degrees = len(self.by_seed) - 1
        limit = float(t.ppf((1 + LEVEL) / 2, degrees))
        # the square of a noncentral t: nct itself is not a number for large shifts
        return float(1 - ncf.cdf(limit**2, 1, degrees, shift**2))

    def cells(self) -> list[str]:
        """Return mean, interval, seeds, verdict, and the difference that is found with POWER."""
        if self.error is None:
            return [f"{self.mean:+.4f}", "", str(len(self.by_seed)), self.verdict, ""]
        low, high = self.interval
        found = brentq(lambda shift: self.power(shift) - POWER, 0.0, 40.0) * self.error
        return [
            f"{self.mean:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
            str(len(self.by_seed)),
            self.verdict,
            f"{found:.4f}",
        ]


HEADINGS = ["difference", "95 % interval", "seeds", "finding", "found with 80 % power"]


def rendered(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Study:
    """All runs of some sidecars, and the held-out loss by which they are compared."""

    folder: str
    models: Models
    rows: list[ModelRow]
    column: str

    @classmethod
    def read(cls, folder: str) -> "Study":
        """Read all sidecars below a folder; the first loss by name is the one that counts."""
        models = collect([folder])
        rows = Runs(models).rows
        losses = [column.key for column in columns_of(rows) if column.lower_is_better]
        return cls(folder, models, rows, losses[0])

    def losses(self, row: ModelRow, column: str = "") -> Losses:
        """Return the loss of every seed of a run; empty if it was not measured."""
        metric = row.metrics.get(column or self.column)
        if metric is None:
            return {}
        # twins of one shape are runs of one scratch model: where several have a seed, their mean
        by_seed: dict[str, list[float]] = defaultdict(list)
        for name, run in (metric.seeds or {row.seed: metric}).items():
            by_seed[name.split()[0].rpartition(".")[2]].append(float(run.value))
        return {seed: fmean(values) for seed, values in by_seed.items()}

    def lead(self, pruned: ModelRow, scratch: ModelRow, column: Column | None = None) -> "Lead":
        """Return by how much pruned is better in a column, that of the losses by default."""
        key, more = (column.key, not column.lower_is_better) if column else (self.column, False)
        ours, theirs = self.losses(pruned, key), self.losses(scratch, key)
        effect = Effect.of(theirs, ours) if more else Effect.of(ours, theirs)
        return Lead(pruned, scratch, ours, theirs, effect)

    def matched(self, setting: str, column: Column | None = None) -> list["Lead"]:
        """Return pruned and scratch models that are token-matched in a setting, by common seeds."""
        found = (self.lead(p, s, column) for p, s, other, _ in pairs(self.rows) if other == setting)
        return in_order(lead for lead in found if lead.effect.by_seed)

    def named(self, kind: str) -> list[tuple[ModelRow, ModelRow, str | None, str]]:
        """Return pruned models, their scratch runs of a kind, and how they match or why not.

        Names tell: they end with seeds, those of pooled runs with that of the first.
        """
        return [
            (pruned, scratch, setting, why)
            for pruned, scratch, setting, why in pairs(self.rows)
            if scratch.name.split(".")[0] == kind
            and scratch.name.split(".")[1:-1] == pruned.name.split(".")[1:-1]
        ]

    def at_equal_compute(self) -> list["Lead"]:
        """Return pruned models and what was trained on as many FLOPs."""
        found = (self.lead(pruned, scratch) for pruned, scratch, _, _ in self.named("compute"))
        return in_order(lead for lead in found if lead.effect.by_seed)

    def halves(self) -> list[ModelRow]:
        """Return the retrained models that have lost half of their blocks."""
        return [
            row
            for row in self.rows
            if row.pruned and row.tokens and abs(float(row.ratio or 0) - 0.5) < 0.05
            if self.losses(row)
        ]


@dataclass(frozen=True)
class Lead:
    """A pruned model beside one from scratch: what both reach by seed, and by how much it leads."""

    pruned: ModelRow
    scratch: ModelRow
    ours: Losses
    theirs: Losses
    effect: Effect

    @property
    def tokens(self) -> list[str]:
        """What both were trained on, in tokens."""
        return [f"{int(row.tokens or 0):,}" for row in (self.pruned, self.scratch)]

    def means(self, digits: int) -> list[str]:
        """Return the means of both."""
        return [f"{fmean(each.values()):.{digits}f}" for each in (self.ours, self.theirs)]


def unit(row: ModelRow) -> str:
    """Return what a run's method removes."""
    name = next(n for n in registry.names() if row.method.startswith(n))
    return registry.get(name).unit


def run_name(row: ModelRow) -> str:
    """Return method and ratio."""
    return f"{row.method} {float(row.ratio or 0):.3g}"


def in_order(found: Iterable[Lead]) -> list[Lead]:
    """Return pairs from coarse to fine, and with more tokens later."""
    return sorted(
        found,
        key=lambda lead: (
            UNITS.index(unit(lead.pruned)), lead.pruned.method, float(lead.pruned.ratio or 0),
            int(lead.pruned.tokens or 0),
        ),
    )  # fmt: skip


def compared(found: Iterable[Lead]) -> str:
    """Return a table of pruned models beside scratch: positive where pruned is better."""
    rows = [
        [run_name(lead.pruned), *lead.tokens, *lead.means(4), *lead.effect.cells()]
        for lead in found
    ]
    return rendered(["method", "N", "scratch's tokens", "pruned", "scratch", *HEADINGS], rows)


def tally(effects: Iterable[Effect]) -> str:
    """Return how often a finding holds, in words."""
    effects = list(effects)
    if not effects:
        return "No runs for this yet."
    verdicts = [effect.verdict for effect in effects]
    counts = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)]
    return f"Of {len(verdicts)} comparisons: {', '.join(counts)}. {corrected(effects)}".rstrip()


def corrected(effects: list[Effect]) -> str:
    """Return how many findings hold if the chance that any is wrong is to be 5 % (Holm 1979)."""
    if all(effect.verdict != "holds" for effect in effects):
        return ""
    sure = 0
    for number, effect in enumerate(sorted(effects, key=lambda effect: effect.chance)):
        if effect.chance > (1 - LEVEL) / (len(effects) - number):
            break
        sure += effect.verdict == "holds"
    return f"Corrected for their number, by Holm's procedure, {sure} of them hold."


def unmatched(study: Study) -> str:
    """Return why runs on the total budget are compared with none; nothing if all are."""
    told = [
        f"{scratch.name} is not compared with {pruned.name}: {why}."
        for pruned, scratch, setting, why in study.named("whole")
        if setting is None
    ]
    return "\n".join(told)


def shrinking(study: Study, key: str) -> str:
    """Return how the advantage of pruning changes with tokens or with ratio."""
    groups: dict[tuple[object, ...], list[tuple[float, Losses]]] = defaultdict(list)
    for lead in study.matched(matching.EQUAL_RETRAINING):
        row, seeds = lead.pruned, lead.ours.keys() & lead.theirs.keys()
        tokens, ratio = float(row.tokens or 0), round(float(row.ratio or 0), 2)
        along, other = (tokens, ratio) if key == "tokens" else (ratio, tokens)
        by_seed = {seed: lead.theirs[seed] - lead.ours[seed] for seed in sorted(seeds)}
        groups[row.method, other].append((along, by_seed))
    rows = []
    for (method, _), points in groups.items():
        points.sort(key=lambda point: point[0])
        (few, at_few), (many, at_many) = points[0], points[-1]
        # seeds whose shapes differ, as learned ones do, are points of one value
        if few < many and at_few.keys() & at_many.keys():
            # smaller where more is given: at_few - at_many is positive
            cells = Effect.of(at_many, at_few).cells()
            shown = [f"{value:,.0f}" if key == "tokens" else f"{value:g}" for value in (few, many)]
            rows.append([str(method), " to ".join(shown), *cells])
    if not rows:
        return f"No method has runs at several values of {key} yet."
    return rendered(["method", key, *HEADINGS], rows)


def by_granularity(study: Study) -> list[tuple[str, int, Effect]]:
    """Return how much lower the loss of finer methods is: two granularities, tokens, effect."""
    groups: dict[tuple[int, str], list[Losses]] = defaultdict(list)
    for row in study.halves():
        groups[int(row.tokens or 0), unit(row)].append(study.losses(row))
    # of seeds that all of its runs have: a mean over others would be one of other methods
    means = {
        key: {s: fmean(run[s] for run in runs) for s in runs[0] if all(s in run for run in runs)}
        for key, runs in groups.items()
    }
    return [
        (f"{fine} against {coarse}", tokens, Effect.of(means[tokens, fine], means[tokens, coarse]))
        for tokens in sorted({tokens for tokens, _ in means})
        for number, coarse in enumerate(UNITS)
        for fine in UNITS[number + 1 :]
        if means.get((tokens, coarse), {}).keys() & means.get((tokens, fine), {}).keys()
    ]


def by_method(study: Study) -> list[tuple[ModelRow, ModelRow, Effect]]:
    """Return how much lower the loss of each method is than that of one for layers.

    At the most tokens: its run, that one's, and the effect.
    """
    half = study.halves()
    most = max((int(row.tokens or 0) for row in half), default=0)
    last = [row for row in half if row.tokens == most]
    last.sort(key=lambda row: (UNITS.index(unit(row)), row.method))
    found = [
        (row, base, Effect.of(study.losses(row), study.losses(base)))
        for base in last
        if unit(base) == UNITS[0]
        for row in last
        if row is not base
    ]
    return [entry for entry in found if entry[2].by_seed]


def methods_table(study: Study) -> str:
    """Return that as a table."""
    rows = [
        [
            run_name(row),
            unit(row),
            f"{row.shape['nonzero']:,}",
            f"{fmean(study.losses(row).values()):.4f}",
            *effect.cells(),
        ]
        for row, _, effect in by_method(study)
    ]
    headings = ["method", "removes", "weights left", "loss", *HEADINGS]
    return rendered(headings, rows) if rows else "No runs yet."


def of_parent(study: Study) -> str:
    """Return the losses and accuracies of the parent, in a sentence."""
    for row in study.rows:
        if row.name == "parent":
            found = [
                f"{row.metrics[column.key].value:.4g} ({column.heading})"
                for column in columns_of(study.rows)
                if column.key in row.metrics and column is not AVERAGE
            ]
            return f"At the end it reaches {', '.join(found)}."
    return ""


def parent_curve(study: Study) -> str:
    """Return the held-out losses of the parent while it was trained, as a table."""
    for path, record in study.models.checkpoints.values():
        points = record.results.get("evaluations") or []
        if path.parent.name == "parent" and points:
            every = max(1, len(points) // POINTS)
            shown = points[every - 1 :: every]
            per_step = record.results["batch_size"] * record.results["seq_len"]
            rows = [[f"{point['step'] * per_step:,}", f"{point['loss']:.4f}"] for point in shown]
            return rendered(["tokens", "validation loss"], rows)
    return "The parent's curve was not recorded."


def prose(study: Study) -> str:
    """Return the first finding on every other held-out text."""
    rows = [
        [column.heading, run_name(lead.pruned), lead.tokens[0], *lead.effect.cells()]
        for column in columns_of(study.rows)
        if column.lower_is_better and column.key != study.column
        for lead in study.matched(matching.EQUAL_RETRAINING, column)
    ]
    return rendered(["text", "method", "N", *HEADINGS], rows) if rows else "None was measured."


def by_task(study: Study) -> str:
    """Return the first finding by the accuracies of tasks, in points."""
    rows = [
        [column.heading, run_name(lead.pruned), lead.tokens[0], *lead.means(1),
         *lead.effect.cells()]
        for column in columns_of(study.rows)
        if not column.lower_is_better and column is not AVERAGE
        for lead in study.matched(matching.EQUAL_RETRAINING, column)
    ]  # fmt: skip
    headings = ["task", "method", "N", "pruned", "scratch", *HEADINGS]
    return rendered(headings, rows) if rows else "None was measured."


def summary(study: Study) -> str:
    """Return three sentences, one for each finding."""
    # one seed decides nothing
    leads = [
        lead for lead in study.matched(matching.EQUAL_RETRAINING) if lead.effect.error is not None
    ]
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for lead in leads:
        if lead.effect.verdict == "holds":
            by_tokens[int(lead.pruned.tokens or 0)].append(lead.effect.mean)
    held = sum(map(len, by_tokens.values()))
    by = " and ".join(
        f"{min(means):.2f} to {max(means):.2f} nats after {tokens / 1e6:.2f} million tokens"
        for tokens, means in sorted(by_tokens.items())
    )
    lines = [
        "Trained on the same rows, pruned models end with a lower loss than models from scratch "
        f"in {held} of {len(leads)} comparisons{f', by {by}' if by else ''}."
    ]
    words = {"holds": ("ahead by", 1), "the reverse": ("behind by", -1), "undecided": ("level,", 1)}
    found = []
    for lead in study.matched(matching.EQUAL_TOTAL):
        if lead.effect.verdict in words:
            word, sign = words[lead.effect.verdict]
            found.append(f"{run_name(lead.pruned)} is {word} {lead.effect.told(sign)}")
    lines.append(
        f"Where scratch also has the parent's tokens, {' and '.join(found)}."
        if found
        else "What scratch reaches with the parent's tokens, too, is not measured yet."
    )
    third = by_granularity(study)
    most = max((tokens for _, tokens, _ in third), default=0)
    finer = [
        f"{name} by {effect.told()}"
        for name, tokens, effect in third
        if tokens == most and effect.verdict == "holds"
    ]
    if finer:
        behind = [
            f"{row.method} is behind {base.method}"
            for row, base, effect in by_method(study)
            if effect.verdict == "the reverse"
        ]
        but = f"; but {' and '.join(behind)}" if behind else ""
        lines.append(
            f"In the mean of methods, finer pruning leaves lower losses: {', '.join(finer)}{but}."
        )
    return " ".join(lines)


MARKS = "<!-- study: three sentences -->", "<!-- study: end -->"


def put_summary(page: Path, sentences: str) -> None:
    """Put sentences between the two marks of a page."""
    begin, end = MARKS
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, behind = rest.partition(end)
    page.write_text(f"{before}{begin}\n{fill(sentences, 100)}\n{end}{behind}", "utf-8")


@dataclass(frozen=True)
class Run:
    """A run as the Makefile names it, KIND.METHOD-RATIO.ROWS.SEED, and its loss."""

    kind: str
    name: str
    seed: str
    loss: float


def runs_of(study: Study) -> list[Run]:
    """Return all runs, those beyond the paper too."""
    beyond = Path(study.folder).with_name("beyond")
    folders = [study.folder, *([str(beyond)] if beyond.exists() else [])]
    found = []
    for path, record, _ in collect(folders).evaluations():
        name, _, seed = path.parent.name.rpartition(".")
        kind, _, rest = name.partition(".")
        losses = metrics_of(record)
        if rest and study.column in losses:
            found.append(Run(kind, rest, seed, float(losses[study.column].value)))
    return found


def losses_by_name(runs: Iterable[Run], kind: str) -> dict[str, Losses]:
    """Return the losses by seed of every run of a kind."""
    found: dict[str, Losses] = defaultdict(dict)
    for run in runs:
        if run.kind == kind:
            found[run.name][run.seed] = run.loss
    return found


def taught(runs: list[Run]) -> str:
    """Return how much lower losses are where the parent teaches, at equal tokens."""
    plain, rows = losses_by_name(runs, "pruned"), []
    for name, losses in sorted(losses_by_name(runs, "taught").items()):
        if losses.keys() & plain[name].keys():
            means = [f"{fmean(each.values()):.4f}" for each in (losses, plain[name])]
            rows.append([name, *means, *Effect.of(losses, plain[name]).cells()])
    return rendered(["run", "taught", "plain", *HEADINGS], rows) if rows else "No runs yet."


SOURCES = {"weights": "initial weights alone", "order": "order of rows alone", "scratch": "both"}


def chance(runs: list[Run]) -> str:
    """Return how much the losses of twins vary by what their seeds draw.

    Intervals of standard deviations are those of the chi-squared distribution, at 95 %.
    """
    rows = []
    both, order = (losses_by_name(runs, kind) for kind in ("scratch", "order"))
    for kind, source in SOURCES.items():
        for name, losses in sorted(losses_by_name(runs, kind).items()):
            others = order.get(name, {})
            first = {seed: loss for seed, loss in both[name].items() if seed not in others}
            if not others or len(first) != 1:
                continue
            values = [*{**losses, **first}.values()]  # the first seed's run is one of each source
            degrees, spread = len(values) - 1, stdev(values)
            low, high = (
                spread * sqrt(degrees / chi2.ppf(share, degrees))
                for share in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
            )
            rows.append([name, source, f"{fmean(values):.4f}", str(len(values)),
                         f"{spread:.4f}", f"{low:.4f} to {high:.4f}"])  # fmt: skip
    headings = ["run", "drawn anew", "mean loss", "runs", "standard deviation", "95 % interval"]
    return rendered(headings, rows) if rows else "No runs yet."


def shown(study: Study, layout: str) -> str:
    """Return one of the paper's tables in Markdown."""
    try:
        return table(TableRequest((study.folder,), layout=layout, format="md")).text.rstrip()
    except InputError:
        return "No runs for this yet."


def page(study: Study) -> str:
    """Return the whole page."""
    first, second = map(study.matched, (matching.EQUAL_RETRAINING, matching.EQUAL_TOTAL))
    third, runs = by_granularity(study), runs_of(study)
    finer = rendered(
        ["granularity", "N", *HEADINGS],
        [[name, f"{tokens:,}", *effect.cells()] for name, tokens, effect in third],
    )
    text = Path(__file__).with_name("page.md").read_text()
    parts = {
        "runs": str(sum(1 for _ in study.models.evaluations())),
        "column": study.column,
        "curve": parent_curve(study),
        "tally1": tally(lead.effect for lead in first),
        "first": compared(first),
        "tokens": shrinking(study, "tokens"),
        "ratio": shrinking(study, "ratio"),
        "tally2": tally(lead.effect for lead in second),
        "second": compared(second),
        "unmatched": unmatched(study),
        "methods": methods_table(study),
        "parent": of_parent(study),
        "tally3": tally(effect for _, _, effect in third),
        "third": finer,
        "compute": compared(study.at_equal_compute()),
        "prose": prose(study),
        "task": by_task(study),
        "taught": taught(runs),
        "chance": chance(runs),
        "table16": shown(study, "table16"),
        "table10": shown(study, "table10"),
    }
    for name, content in parts.items():
        text = text.replace("{" + name + "}", content)
    return text


def main() -> None:
    """Write the page."""
    folder, *out = sys.argv[1:]
    study = Study.read(folder)
    if out:
        Path(out[0]).write_text(page(study))
    else:
        print(page(study), end="")
    for readme in out[1:]:
        put_summary(Path(readme), summary(study))


if __name__ == "__main__":
    main()
