"""Runs among collected models: a row per model with its metrics, seeds pooled; pairs of one size.

Every pruned model stands beside each scratch model of its size, and in the paper's layouts a
scratch model takes the method and ratio of those that it is compared with.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prunecli.files import sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.methods import registry
from prunecli.tables import matching
from prunecli.tables.collect import Models
from prunecli.tables.entries import (
    BASE,
    PRUNED,
    SCRATCH,
    SUITE,
    TABLES,
    Metric,
    ModelRow,
    incomparable_because,
    mean_of_tasks,
    mean_over_seeds,
)
from prunecli.tables.metrics import metrics_of
from prunecli.tables.text import count

OUTDATED = "measured on other weights than those of this checkpoint (digest)"
Metrics = dict[str, Metric]


@dataclass(frozen=True)
class Pair:
    """Ids of a pruned and a scratch model of one size; in which setting they match, or why not."""

    pruned: str
    scratch: str
    setting: str | None
    why: str


@dataclass(frozen=True)
class Runs:
    """What follows from collected models, each computed once."""

    models: Models

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every pruned model beside every scratch model of the same size."""
        return _pairs(self.models)

    @cached_property
    def rows(self) -> list[ModelRow]:
        """One row per model, with the mean over seeds of one run; then models without a sidecar."""
        groups: dict[str, list[ModelRow]] = defaultdict(list)
        known = matching.histories(record for _, record in self.models.checkpoints.values())
        for key, row in _as_twins(_rows(self.models), self.pairs):
            record = self.models.checkpoints[key][1]
            made = [record.results.get("sizes"), matching.recipe(record, known)]
            signature = [row.method, str(row.ratio), *made]
            groups[json.dumps(signature, sort_keys=True)].append(row)
        return [mean_over_seeds(group) for group in groups.values()] + _external(self.models)

    @property
    def candidates(self) -> list[ModelRow]:
        """The architectures that searches have tried, with their losses."""
        return [row for record in self.models.searches for row in _candidates(record)]


# -- pairs ---------------------------------------------------------------------------------------


def _pairs(models: Models) -> list[Pair]:
    records = {key: record for key, (_, record) in models.checkpoints.items()}
    known = matching.histories(records.values())
    sizes = {key: _size(record, known) for key, record in records.items()}
    histories = {key: matching.training_history(record) for key, record in records.items()}

    def setting(one: str, other: str) -> tuple[str | None, str]:
        for key in (one, other):
            if key in models.integrity_errors:
                return None, f"{models.name(key)}: {models.integrity_errors[key]}"
        return matching.comparison_setting(histories[one], histories[other])

    return [
        Pair(one, other, *setting(one, other))
        for one, ours in histories.items()
        for other, theirs in histories.items()
        if ours.pruned and theirs.scratch and sizes[one] == sizes[other]
    ]


def _size(record: Sidecar, known: matching.Histories) -> tuple[Any, ...]:
    """Return what two models of one size have in common: shape, parameters, and zeros."""
    results = record.results
    shape = json.dumps(results.get("sizes"), sort_keys=True)
    return shape, results.get("params"), matching.zeros(record, known)


# -- rows ----------------------------------------------------------------------------------------


def _rows(models: Models) -> dict[str, ModelRow]:
    """Return the row of every checkpoint by its id; what others were pruned from is the base."""
    metrics = _metrics(models)
    rows = {key: _row(models, key, metrics.get(key, {})) for key in models.checkpoints}
    parents = {
        step.parent
        for _, record in models.checkpoints.values()
        for step in record.history
        if step.command == "prune"
    }
    for key in rows.keys() & parents:
        rows[key] = replace(rows[key], method=BASE, initialization=BASE)
    return rows


def _as_twins(rows: dict[str, ModelRow], pairs: list[Pair]) -> Iterator[tuple[str, ModelRow]]:
    """Yield every row, of a scratch model once per method and ratio that it is compared with."""
    partners: dict[str, list[ModelRow]] = defaultdict(list)
    for pair in pairs:
        partners[pair.scratch].append(rows[pair.pruned])
    for key, row in rows.items():
        compared = partners[key] if row.initialization != BASE else []
        names = dict.fromkeys((other.method, other.ratio) for other in compared)
        for method, ratio in names or {(row.method, row.ratio): None}:
            yield key, replace(row, method=method, ratio=ratio)


def _row(models: Models, key: str, metrics: Metrics) -> ModelRow:
    record = models.checkpoints[key][1]
    history, results = matching.training_history(record), record.results
    before, after = (_tokens(record, seen) for seen in (history.before, history.after))
    method = results.get("method") or (BASE if not history.scratch else SCRATCH)
    pruning = record.last("prune")
    pattern = pruning.options.get("sparsity") if pruning else None
    parent = f"p{count(before)}" if before else "released"
    unpruned = SCRATCH if history.scratch else BASE
    return ModelRow(
        name=models.name(key),
        method=f"{method}-{pattern}" if pattern else method,
        ratio=results.get("ratio", 0.0 if not history.pruned else None),
        initialization=f"{PRUNED}-{parent}" if history.pruned else unpruned,
        tokens=after,
        before=before or None,
        metrics=metrics,
        shape=_shape(results) | _speedups(models, key),
        history=history,
        integrity_error=models.integrity_errors.get(key, ""),
        parent=parent if history.pruned else "",
        seed=_seed(record),
        origin=matching.origin(record) or str(record.outputs.get("digest", "")),
    )


def _tokens(record: Sidecar, seen: matching.RowsSeen) -> int:
    """Return how many tokens the rows seen have."""
    seq_len = {
        entry.digest: int((entry.model_extra or {}).get("seq_len", 0))
        for step in record.history
        for entry in step.inputs
        if entry.role == "rows"
    }
    return sum(
        (stop - start) * times * seq_len[digest]
        for digest, segments in seen.items()
        for start, stop, times in segments
    )


def _seed(record: Sidecar) -> str:
    """Return the seed of the last step: of training, or of what it was calibrated on."""
    last = record.history[-1]
    of_inputs = [(entry.model_extra or {}).get("seed") for entry in last.inputs]
    return str(next((s for s in (last.options.get("seed"), *of_inputs) if s is not None), ""))


def _shape(results: dict[str, Any]) -> dict[str, Any]:
    names = ("params", "nonzero", "flops", "flops_tokens")
    return {**results.get("sizes", {}), **{k: results[k] for k in names if k in results}}


def _speedups(models: Models, key: str) -> dict[str, Any]:
    """Return what `speed` measured of a model: `prefill_speedup` and so on, over its base."""
    return {
        f"{quantity}_speedup": timed["speedup"]
        for _, record, of in models.measurements
        if record.kind == "speed" and of == key
        for quantity, timed in record.results.get("measured", {}).items()
        if isinstance(timed, dict) and "speedup" in timed
    }


# -- metrics -------------------------------------------------------------------------------------


def _metrics(models: Models) -> dict[str, Metrics]:
    """Return the metrics of every model; later evaluations of the same thing win."""
    by_model: dict[str, Metrics] = defaultdict(dict)
    for _, record, key in models.evaluations():
        if key is not None:
            digest = models.checkpoints[key][1].outputs.get("digest")
            outdated = record.inputs[0].digest != digest
            _update(by_model[key], metrics_of(record), OUTDATED if outdated else "")
    for metrics in by_model.values():
        _average(metrics)
    return by_model


def _external(models: Models) -> list[ModelRow]:
    """Return rows of evaluated models that have no sidecar of their own, by name and digest.

    Files of one name in several folders need not be of one model.
    """
    rows: dict[tuple[str, str], ModelRow] = {}
    for path, record, key in models.evaluations():
        if key is None:
            shape, digest = _shape(record.results), record.inputs[0].digest
            new = ModelRow(path.stem, BASE, 0.0, BASE, metrics={}, shape=shape, origin=digest)
            row = rows.setdefault((path.stem, digest), new)
            _update(row.metrics, metrics_of(record), "")
            _average(row.metrics)
    return list(rows.values())


def _update(known: Metrics, metrics: Metrics, note: str) -> None:
    """Add what another evaluation measured, with a note where it is not what one before did."""
    for name, metric in metrics.items():
        before = known.get(name)
        other = before is not None and incomparable_because(before, metric)
        twice = f"measured more than once, also with {other}" if other else ""
        known[name] = replace(metric, note=note or twice)


def _average(metrics: Metrics) -> None:
    """Add the mean of the paper's eight tasks, or where these are not, of all tasks there are."""
    tasks = [key for key, metric in metrics.items() if metric.accuracy]
    eight = all(key in metrics for key in SUITE)
    mean = mean_of_tasks(metrics, list(SUITE) if eight else tasks)
    if mean is not None:
        metrics["average"] = mean


# -- searches ------------------------------------------------------------------------------------


class _Searched(sidecar.Part):
    method: str


def _candidates(record: Sidecar) -> Iterator[ModelRow]:
    """Yield the architectures of one search, the selected one marked."""
    method = sidecar.part("the search", record.options, _Searched).method
    best = record.results["candidates"][0]
    for shape in record.results["candidates"]:
        yield ModelRow(
            name=f"{method} {shape['role']}",
            method=method,
            ratio=shape["ratio"],
            initialization=PRUNED,
            shape={
                **shape,
                "nonzero": shape["params"],
                "selected": "yes" if shape is best else "",
                "table": TABLES.get(registry.get(method).axes, ""),
            },
        )
