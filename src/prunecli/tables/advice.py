"""Prune or train from scratch? The paper's decision rule, from curves that were measured.

Both curves of a method, pruned and scratch at equal retraining tokens N, are fitted by the usual
scaling law, E + A (N / N0)^-alpha; where they cross, training from scratch has caught up. How sure
this is comes from fits to resampled residuals. A parent that is at hand costs nothing: below the
crossover pruning is better. A parent that must be trained first costs its own tokens: then what
counts is the comparison at equal total budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log10
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError, UsageError
from prunecli.tables import matching
from prunecli.tables import reference as paper
from prunecli.tables.entries import PRUNED, ModelRow, columns_of, difference, pairs
from prunecli.tables.layouts import MATCHED
from prunecli.tables.render import Cell, Column
from prunecli.tables.runs import Runs
from prunecli.tables.text import count, filled

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
PARAMETERS = 3
RESAMPLES = 300
FAR = 10.0  # how many times the measured range a crossover is looked for
SURE = 0.95


@dataclass(frozen=True)
class Advice:
    """What to do, as plain JSON; `metric` is what it goes by, for people."""

    results: dict[str, Any]
    metric: str

    def text(self, width: int | None = None) -> str:
        """Return the advice in words, of at most `width` characters in a line."""
        verdict = self.results["verdict"]
        lines = [f"Recommendation: {verdict} (by {self.metric}, if you already have the parent)"]
        for case in self.results["cases"]:
            lines += ["", *_sentences(case, self.metric)]
        return "\n".join(filled(line, width) for line in lines)


@dataclass(frozen=True)
class Case:
    """One method at one ratio from one parent: (tokens, pruned, scratch, sd) at equal tokens."""

    method: str
    ratio: str
    parent: str
    points: list[tuple[float, float, float, float]]
    total: str

    @property
    def name(self) -> str:
        """What the case is called in a line."""
        return f"{self.method} {self.ratio} of {self.parent}".strip()


def advise(runs: Runs, reference: str | None, budget: float | None) -> Advice:
    """Say whether to prune or to train from scratch with `budget` tokens, and how sure that is.

    Without a budget, the most tokens that were measured. Raises InputError if nothing is matched,
    UsageError for a budget that is no number of tokens.
    """
    if budget is not None and not 1 <= budget < inf:
        raise UsageError(f"--budget {budget}: expected a finite number of tokens, 1 or more")
    rows = list(runs.rows)
    if reference is not None:
        # the paper counts in billions
        rows += paper.entries("token-scaling") + paper.entries("equal-total")
    column = next((c for c in columns_of(rows) if c.lower_is_better), None)
    if column is None:
        raise InputError(
            "no loss was measured on these models",
            "evaluate each with `prunecli eval --out FILE.json`",
        )
    cases = _cases(rows, column)
    if not cases:
        raise InputError(
            "no pruned model has a token-matched scratch twin here",
            "see table --layout pairs for why",
        )
    advised = [_case_advice(case, budget) for case in cases]
    results = {"metric": column.key, "cases": advised, "verdict": _verdict(advised)}
    return Advice(results, column.heading)


def _cases(rows: list[ModelRow], column: Column) -> list[Case]:
    points: dict[tuple[str, ...], dict[float, tuple[float, float, float, float]]] = {}
    totals: dict[tuple[str, ...], str] = {}
    for pruned, scratch, setting, _ in pairs(rows):
        cell = difference(pruned, scratch, column)
        if cell is None or cell.value is None:
            continue
        key = (pruned.source, pruned.method, str(pruned.ratio), pruned.initialization)
        ours, theirs = pruned.metrics[column.key], scratch.metrics[column.key]
        if setting in MATCHED:
            unit = 1e9 if pruned.source == "paper" else 1.0
            tokens = float(pruned.tokens or 0) * unit
            sd = max(ours.sd or 0.0, theirs.sd or 0.0)
            point = (tokens, float(ours.value), float(theirs.value), sd)
            if points.setdefault(key, {}).setdefault(tokens, point) != point:
                raise InputError(
                    f"'{pruned.name}' and '{scratch.name}' are not the only pair of "
                    f"{pruned.method} at {count(tokens)} tokens, and differ from the other in more "
                    "than seeds",
                    "give the runs of one kind alone",
                )
        elif setting == matching.EQUAL_TOTAL:
            totals[key] = _total(cell, column)
    return [
        Case(
            method + (" (paper)" if source == "paper" else ""),
            ratio,
            initialization.removeprefix(f"{PRUNED}-"),
            sorted(curve.values()),
            totals.get((source, method, ratio, initialization), ""),
        )
        for (source, method, ratio, initialization), curve in points.items()
    ]


def _total(cell: Cell, column: Column) -> str:
    by = float(cell.value or 0)
    doubt = ", within its noise" if cell.grey else ""
    return f"{'pruning' if by > 0 else 'scratch'} by {abs(by):.3g} ({column.heading}){doubt}"


def _case_advice(case: Case, budget: float | None) -> dict[str, Any]:
    """Return the advice of one case as plain JSON."""
    most = case.points[-1][0]
    wanted = budget or most
    result: dict[str, Any] = {
        "case": case.name,
        "method": case.method,
        "ratio": case.ratio,
        "parent": case.parent,
        "measured_tokens": [tokens for tokens, *_ in case.points],
        "budget": wanted,
        "equal_total_budget": case.total or None,
    }
    if len(case.points) <= PARAMETERS:
        return result | {"verdict": "not enough runs", "next_tokens": _next(case, wanted)}
    import numpy as np

    pruned, scratch = _resampled(case)
    advantages = (scratch.at(np.array([wanted])) - pruned.at(np.array([wanted])))[:, 0].tolist()
    centre, rest = advantages[0], sorted(advantages[1:])
    chance = sum(value > 0 for value in rest) / len(rest)
    low, high = _interval(rest)
    verdict = "prune" if chance >= SURE else "scratch" if chance <= 1 - SURE else "undecided"
    crossings = _crossovers(pruned, scratch, case)
    crossed = sorted(value for value in crossings[1:] if value is not None)
    result |= {
        "verdict": verdict,
        "advantage": centre,
        "advantage_interval": [low, high],
        "chance_that_pruning_is_better": chance,
        "crossover_tokens": crossings[0],
        "crossover_interval": list(_interval(crossed)) if crossings[0] and crossed else None,
        "chance_of_a_crossover": len(crossed) / len(rest),
        "searched_up_to": FAR * most,
        "extrapolated": wanted > most or wanted < case.points[0][0],
    }
    if verdict == "undecided":
        result["next_tokens"] = _next(case, wanted)
    return result


def _next(case: Case, budget: float) -> float:
    """Return the token count whose run would tell most: the budget itself, or beside what is."""
    measured = [tokens for tokens, *_ in case.points]
    if all(abs(log10(budget / tokens)) > 0.1 for tokens in measured):
        return budget
    gaps = [(log10(b / a), (a * b) ** 0.5) for a, b in pairwise(measured)]
    widest = max(gaps, default=(0.0, 0.0))
    return widest[1] if widest[0] > log10(3) else measured[-1] * 2


def _resampled(case: Case) -> "tuple[Curves, Curves]":
    """Return the curves of the pruned and the scratch models: of the figures, then resampled."""
    import numpy as np

    draw = np.random.default_rng(0)
    tokens = np.array([point[0] for point in case.points])
    start = float(np.exp(np.log(tokens).mean()))
    noise = np.array([point[3] for point in case.points])

    def curves(values: "Array") -> Curves:
        fitted = Curves.fit(tokens, values[None], start).at(tokens)[0]
        # residuals of a fit are too small by the freedom that it has used up
        residuals = (values - fitted) * np.sqrt(len(values) / (len(values) - PARAMETERS))
        size = (RESAMPLES, len(values))
        drawn = draw.choice(residuals, size) + noise * draw.standard_normal(size)
        return Curves.fit(tokens, np.vstack([values, fitted + drawn]), start)

    pruned, scratch = (np.array([point[index] for point in case.points]) for index in (1, 2))
    return curves(pruned), curves(scratch)


@dataclass(frozen=True)
class Curves:
    """Fits of E + A (N / N0)^-alpha, one to each row of figures."""

    floor: "Array"
    scale: "Array"
    power: "Array"
    start: float

    @classmethod
    def fit(cls, tokens: "Array", values: "Array", start: float) -> "Curves":
        """Fit each row of `values` [rows, points] by least squares.

        For each alpha, E and A are linear: one dimension is searched, and no start leads astray.
        """
        import numpy as np

        powers = np.geomspace(0.02, 3.0, 200)
        solutions, errors = [], []
        for power in powers:
            basis = np.stack([np.ones_like(tokens), (tokens / start) ** -power], 1)
            solution = values @ np.linalg.pinv(basis).T
            solutions.append(solution)
            errors.append(((solution @ basis.T - values) ** 2).sum(1))
        best = np.argmin(errors, 0)
        chosen = np.array(solutions)[best, np.arange(len(values))]
        return cls(chosen[:, 0], chosen[:, 1], powers[best], start)

    def at(self, tokens: "Array") -> "Array":
        """Return [rows, points]: every curve at these token counts."""
        scaled = tokens[None] / self.start
        return self.floor[:, None] + self.scale[:, None] * scaled ** -self.power[:, None]


def _crossovers(pruned: Curves, scratch: Curves, case: Case) -> list[float | None]:
    """Return from which token count on scratch is better, None where there is none in reach."""
    import numpy as np

    tokens = np.geomspace(case.points[0][0], case.points[-1][0] * FAR, 401)
    ahead = scratch.at(tokens) > pruned.at(tokens)
    falls = ahead[:, :-1] & ~ahead[:, 1:]
    middle = np.sqrt(tokens[:-1] * tokens[1:])
    return [float(middle[row.argmax()]) if row.any() else None for row in falls]


def _interval(values: list[float]) -> tuple[float, float]:
    """Return the range of the middle 95 % of sorted values."""
    last = len(values) - 1
    return values[round(0.025 * last)], values[round(0.975 * last)]


def _verdict(cases: list[dict[str, Any]]) -> str:
    """Return what all decided cases agree on."""
    verdicts = {case["verdict"] for case in cases}
    decided = verdicts & {"prune", "scratch"}
    if not decided:
        return "undecided" if "undecided" in verdicts else "not enough runs"
    return decided.pop() if len(decided) == 1 else "it depends"


def _sentences(case: dict[str, Any], metric: str) -> Iterable[str]:
    yield f"{case['case']}: {case['verdict']} at {count(case['budget'])} tokens"
    measured = ", ".join(count(tokens) for tokens in case["measured_tokens"])
    if "advantage" in case:
        low, high = case["advantage_interval"]
        yield (
            f"  pruning is better by {case['advantage']:+.3g} {metric} "
            f"(95 %: {low:+.3g} to {high:+.3g})"
        )
        yield f"  chance that it is better: {_percent(case['chance_that_pruning_is_better'])}"
        if case["crossover_interval"]:
            low, high = case["crossover_interval"]
            yield (
                f"  scratch catches up at {count(case['crossover_tokens'])} tokens "
                f"(95 %: {count(low)} to {count(high)})"
            )
        else:
            yield f"  scratch does not catch up before {count(case['searched_up_to'])} tokens"
        if case["extrapolated"]:
            yield f"  this is outside of what was measured: {measured}"
    else:
        yield f"  a fit needs {PARAMETERS + 1} token counts or more, measured: {measured}"
    if case["equal_total_budget"]:
        yield f"  if the parent's tokens count too: {case['equal_total_budget']}"
    if "next_tokens" in case:
        tokens = count(case["next_tokens"])
        yield (
            f"  next: train {case['method']} {case['ratio']} and its scratch twin on the same "
            f"{tokens} tokens, then evaluate both:"
        )
        yield f"    prunecli train --tokens {case['next_tokens']:.4g} --data ROWS IN OUT"


def _percent(chance: float) -> str:
    """Return a chance for people: 300 resamples prove no certainty."""
    return ">99 %" if chance > 0.99 else "<1 %" if chance < 0.01 else f"{100 * chance:.0f} %"
