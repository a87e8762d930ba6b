"""Sidecars from files and folders: which models there are, what was measured, what is not so.

A checkpoint's sidecar tells what was done and what it cost, an evaluation's what came out of it;
they meet by the model's id (or, for models from elsewhere, by the digest of their weights).
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunecli.data.tokenizer import AUTO
from prunecli.errors import InputError
from prunecli.files import provenance, sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.measuring.harness import is_accuracy
from prunecli.methods import registry
from prunecli.model.checkpoint import Checkpoint
from prunecli.tables import matching
from prunecli.tables.entries import (
    BASE,
    LOSS,
    PERPLEXITIES,
    PRUNED,
    SCRATCH,
    SUITE,
    TABLES,
    Metric,
    ModelRow,
    mean_of_tasks,
    pooled,
    standard_error,
    unlike,
)
from prunecli.tables.render import count

STALE = "measured on other weights than those of this checkpoint (digest)"


@dataclass
class Models:
    """Checkpoints and what was measured of them among some sidecars.

    Attributes:
        made: checkpoint sidecars by id, each with its path.
        measured: evaluations and speeds, each with its path and the id of its model (None: not
            among `made`).
        wrong: why the sidecar of a model cannot be believed, by id.
        searches: sidecars of searched shapes.
    """

    made: dict[str, tuple[Path, Sidecar]]
    measured: list[tuple[Path, Sidecar, str | None]]
    wrong: dict[str, str] = field(default_factory=dict)
    searches: list[Sidecar] = field(default_factory=list)

    @cached_property
    def twins(self) -> "list[Pair]":
        """Every pruned model beside every scratch model of the same size."""
        return _twins(self)

    @cached_property
    def entries(self) -> list[ModelRow]:
        """One entry per model, seeds of one run pooled; scratch twins stand by their pruned."""
        return _entries(self)

    @property
    def candidates(self) -> list[ModelRow]:
        """The shapes that searches have tried, with their losses."""
        return [entry for record in self.searches for entry in _candidates(record)]

    def evaluations(self) -> Iterator[tuple[Path, Sidecar, str | None]]:
        """Yield the sidecars made by `eval`."""
        return (entry for entry in self.measured if entry[1].kind == "eval")


def collect(paths: list[str]) -> Models:
    """Collect sidecars from files and from folders, which are searched to any depth.

    Raises InputError for a path without any sidecar, or one that is damaged.
    """
    found = [(path, record) for given in paths for path, record in _sidecars(given)]
    made: dict[str, tuple[Path, Sidecar]] = {}
    for path, record in found:
        if record.kind == "checkpoint":
            made.setdefault(record.id, (path, record))
    for path, record in found:
        if record.kind == "eval" and (told := _told(record)) is not None:
            made.setdefault(told.id, (path, told))
    by_digest = {record.outputs.get("digest"): key for key, (_, record) in made.items()}
    models = Models(made, [])
    for path, record in found:
        if record.kind in ("eval", "speed"):
            model = record.inputs[0]
            key = model.id if model.id in made else by_digest.get(model.digest)
            models.measured.append((path, record, key))
    models.searches = [record for _, record in found if record.kind == "arch"]
    models.wrong = {key: wrong for key in made if (wrong := _wrong(models, key))}
    return models


def _candidates(record: Sidecar) -> Iterator[ModelRow]:
    """Yield the shapes of one search, the chosen one marked."""
    method, best = record.options["method"], record.results["candidates"][0]
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


def _told(record: Sidecar) -> Sidecar | None:
    """Return a checkpoint's sidecar as its evaluation tells it, None for one without a history."""
    model, results = record.inputs[0], record.results.get("model")
    if model.id is None or not results or len(record.history) < 2:
        return None
    last = record.history[-2]
    return record.model_copy(
        update={
            "kind": "checkpoint",
            "id": model.id,
            "made_by": record.made_by.model_copy(update={"command": last.command}),
            "options": last.options,
            "inputs": last.inputs,
            "outputs": {"digest": model.digest},
            "results": results,
            "history": record.history[:-1],
        }
    )


def _wrong(models: Models, key: str) -> str:
    """Return what is not so in a model's sidecar, or nothing."""
    path, record = models.made[key]
    if found := provenance.integrity_error(record):
        return found
    for step in record.history[:-1]:
        # the same steps told by the ancestor itself
        if step.id in models.made and models.made[step.id][1].history[-1] != step:
            return f"its history differs from that of '{name_of(models.made[step.id][0])}'"
    digest = record.outputs.get("digest")
    if _touched(path) and Checkpoint(str(path.parent)).digest() != digest:
        return "its weights are not those of its sidecar (digest)"
    return ""


def _touched(path: Path) -> bool:
    """Return whether weights are newer than the sidecar, which is always written last."""
    if path.name != sidecar.FOLDER_SIDECAR:
        return False
    written = path.stat().st_mtime
    return any(file.stat().st_mtime > written for file in path.parent.glob("*.safetensors"))


def name_of(path: Path) -> str:
    """Return what a model is called: its folder's name, or that of a file's stem."""
    return path.parent.name if path.name == sidecar.FOLDER_SIDECAR else path.stem


def _sidecars(given: str) -> list[tuple[Path, Sidecar]]:
    path = Path(given)
    if path.is_file():
        return [(path, sidecar.read(path))]
    if not path.is_dir():
        raise InputError(f"no such file or folder: '{given}'")
    records = []
    for file in sorted(path.rglob("*.json")):
        try:
            content = json.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        if isinstance(content, dict) and "made_by" in content and "kind" in content:
            records.append((file, sidecar.read(file)))
    if not records:
        raise InputError(f"no sidecar in '{given}'", "give files or folders made by prunecli")
    return records


@dataclass(frozen=True)
class Pair:
    """Ids of a pruned and a scratch model of one size; in which setting they match, or why not."""

    pruned: str
    scratch: str
    setting: str | None
    why: str


def _twins(models: Models) -> list[Pair]:
    known = matching.histories(record for _, record in models.made.values())
    sizes = {key: size(record, known) for key, (_, record) in models.made.items()}
    lines = {key: matching.lineage(record) for key, (_, record) in models.made.items()}

    def setting(one: str, other: str) -> tuple[str | None, str]:
        for key in (one, other):
            if key in models.wrong:
                return None, f"{name_of(models.made[key][0])}: {models.wrong[key]}"
        return matching.setting(lines[one], lines[other])

    return [
        Pair(one, other, *setting(one, other))
        for one, ours in lines.items()
        for other, theirs in lines.items()
        if ours.pruned and theirs.scratch and sizes[one] == sizes[other]
    ]


def size(record: Sidecar, known: matching.Histories) -> tuple[Any, ...]:
    """Return what two models of one size have in common: shape, parameters, and zeros."""
    results = record.results
    shape = json.dumps(results.get("sizes"), sort_keys=True)
    return shape, results["params"], matching.zeros(record, known)


def _entries(models: Models) -> list[ModelRow]:
    measures = _measures(models)
    known = matching.histories(record for _, record in models.made.values())
    runs: dict[str, list[ModelRow]] = defaultdict(list)
    found = {key: _entry(models, key, measures.get(key, {})) for key in models.made}
    for key in _parents(models):
        found[key] = replace(found[key], method=BASE, initialization=BASE)
    partners: dict[str, list[str]] = defaultdict(list)
    for pair in models.twins:
        partners[pair.scratch].append(pair.pruned)
    for key, entry in found.items():
        # a twin takes the method and the ratio of each model that it is compared with
        as_twin = {
            (found[other].method, found[other].ratio): found[other]
            for other in partners[key]
            if entry.initialization != BASE
        }
        copies = [
            replace(entry, method=other.method, ratio=other.ratio) for other in as_twin.values()
        ]
        for copy in copies or [entry]:
            record = models.made[key][1]
            made = [record.results.get("sizes"), matching.recipe(record, known)]
            signature = [copy.method, str(copy.ratio), *made]
            runs[json.dumps(signature, sort_keys=True)].append(copy)
    own = [pooled(group) for group in runs.values()]
    return own + [
        ModelRow(name, BASE, 0.0, BASE, measures=measured, shape=shape)
        for (name, _), (measured, shape) in _foreign(models).items()
    ]


def _parents(models: Models) -> set[str]:
    """Return the ids of those models that others were pruned from."""
    return {
        step.parent
        for _, record in models.made.values()
        for step in record.history
        if step.command == "prune" and step.parent in models.made
    }


def _entry(models: Models, key: str, measures: dict[str, Metric]) -> ModelRow:
    path, record = models.made[key]
    line = matching.lineage(record)
    seq_len = {
        entry.digest: int((entry.model_extra or {}).get("seq_len", 0))
        for step in record.history
        for entry in step.inputs
        if entry.role == "rows"
    }

    def tokens(seen: matching.RowsSeen) -> int:
        return sum(
            (stop - start) * times * seq_len[digest]
            for digest, pieces in seen.items()
            for start, stop, times in pieces
        )

    before, after = tokens(line.before), tokens(line.after)
    results = record.results
    method = results.get("method") or (BASE if not line.scratch else SCRATCH)
    cut = record.last("prune")
    pattern = cut.options.get("sparsity") if cut else None
    parent = f"p{count(before)}" if before else "released"
    return ModelRow(
        name=name_of(path),
        method=f"{method}-{pattern}" if pattern else method,
        ratio=results.get("ratio", 0.0 if not line.pruned else None),
        initialization=f"{PRUNED}-{parent}" if line.pruned else SCRATCH if line.scratch else BASE,
        tokens=after,
        before=before or None,
        measures=measures,
        shape=_shape(results) | _speedups(models, key),
        lineage=line,
        wrong=models.wrong.get(key, ""),
        parent=parent if line.pruned else "",
        seed=_seed(record),
    )


def _seed(record: Sidecar) -> str:
    """Return the seed of the last step: of training, or of what it was calibrated on."""
    last = record.history[-1]
    given = [(entry.model_extra or {}).get("seed") for entry in last.inputs]
    return str(next((s for s in (last.options.get("seed"), *given) if s is not None), ""))


def _shape(results: dict[str, Any]) -> dict[str, Any]:
    names = ("params", "nonzero", "flops", "flops_tokens")
    return {**results.get("sizes", {}), **{k: results[k] for k in names if k in results}}


def _speedups(models: Models, key: str) -> dict[str, Any]:
    """Return what `speed` found for a model: `prefill_speedup` and so on, over its base."""
    return {
        f"{quantity}_speedup": figures["speedup"]
        for _, record, of in models.measured
        if record.kind == "speed" and of == key
        for quantity, figures in record.results.get("measured", {}).items()
        if isinstance(figures, dict) and "speedup" in figures
    }


def _measures(models: Models) -> dict[str, dict[str, Metric]]:
    """Return the measures of every model; later evaluations of the same thing win."""
    found: dict[str, dict[str, Metric]] = defaultdict(dict)
    for _, record, key in models.evaluations():
        if key is None:
            continue
        made = models.made[key][1]
        stale = record.inputs[0].digest != made.outputs.get("digest")
        _take(found[key], measures_of(record), STALE if stale else "")
    for measures in found.values():
        _average(measures)
    return found


def _take(known: dict[str, Metric], measures: dict[str, Metric], note: str) -> None:
    """Add what another evaluation measured, with a note where it is not what one before did."""
    for name, measure in measures.items():
        before = known.get(name)
        again = before is not None and unlike(before, measure)
        twice = f"measured more than once, also with {again}" if again else ""
        known[name] = replace(measure, note=note or twice)


def _average(measures: dict[str, Metric]) -> None:
    """Add the mean of the paper's eight tasks, or where these are not, of all tasks there are."""
    tasks = [key for key, measure in measures.items() if measure.accuracy]
    eight = all(key in measures for key in SUITE)
    mean = mean_of_tasks(measures, list(SUITE) if eight else tasks)
    if mean is not None:
        measures["average"] = mean


def _foreign(
    models: Models,
) -> dict[tuple[str, str], tuple[dict[str, Metric], dict[str, Any]]]:
    """Return measures and shape of models that have no sidecar of their own, by name and digest.

    Files of one name in several folders need not be of one model.
    """
    found: dict[tuple[str, str], tuple[dict[str, Metric], dict[str, Any]]] = {}
    for path, record, key in models.evaluations():
        if key is None:
            of = (path.stem, record.inputs[0].digest)
            measures, _ = found.setdefault(of, ({}, _shape(record.results)))
            _take(measures, measures_of(record), "")
            _average(measures)
    return found


def measures_of(record: Sidecar) -> dict[str, Metric]:
    """Return what one evaluation measured: perplexity or loss per D, accuracy per task."""
    measures = {}
    sources = [entry for entry in record.inputs if entry.role == "evaluation"]
    tokenizers = {e.digest: (e.model_extra or {}).get("tokenizer") for e in sources}
    measured = record.results.get("data", [])
    for key, data in zip(_keys(measured), measured, strict=True):
        losses = data.get("window_losses", [])
        protocol = (
            ("tokenizer", _digest(tokenizers.get(data["digest"]))),
            ("tokens", data["digest"][:8]),
            ("windows", str(data["windows"])),
            ("length", str(data["seq_len"])),
            ("part", data["source"]),
            ("dtype", dtype_of(record)),
        )
        value = data["loss"]
        if key in PERPLEXITIES:
            value = data["perplexity"]
            # to first order a window's loss counts as many times
            losses = [value * loss for loss in losses]
        sd = standard_error([losses])
        measures[key] = Metric(value, sd, protocol, tuple(losses), lower=True)
    for task in record.results.get("tasks", []):
        key, measure = _of_task(record, task)
        measures[key] = measure
    return measures


def _keys(measured: list[dict[str, Any]]) -> list[str]:
    """Return the column of every D of one evaluation; those of other tokens are others.

    Of several parts of a named set the last has the paper's column, as a suite's come last. Other
    D of one name are told apart by their tokens.
    """
    keys = [_key(data) for data in measured]
    named = (LOSS.key, *PERPLEXITIES)

    def alone(number: int) -> bool:
        own = [place for place, key in enumerate(keys) if key == keys[number]]
        same = len({measured[place]["digest"] for place in own}) == 1
        return same or (keys[number] in named and number == own[-1])

    return [
        key if alone(number) else f"loss_{data['source']} {data['digest'][:8]}"
        for number, (key, data) in enumerate(zip(keys, measured, strict=True))
    ]


def _key(data: dict[str, Any]) -> str:
    """Return the column of a D: one of the paper's where it is that set, else its own.

    A perplexity beyond all numbers is none: its loss is told.
    """
    name = data["source"].partition(":")[0]
    if f"ppl_{name}" in PERPLEXITIES and data["perplexity"] is not None:
        return f"ppl_{name}"
    return LOSS.key if name == "dclm" else f"loss_{data['source']}"


def _digest(found: Any) -> str:
    """Return the first letters of a digest, by which figures are told apart."""
    return "unknown" if found is None else str(found)[:8]


def _of_task(record: Sidecar, task: dict[str, Any]) -> tuple[str, Metric]:
    """Return the metric that a task states: an accuracy in points, anything else as it is."""
    inputs = {(e.model_extra or {}).get("name"): e.model_extra or {} for e in record.inputs}
    metric, sigma = task["metric"], task["sigma"]
    accuracy = is_accuracy(metric)
    unit = 100 if accuracy else 1
    measure = Metric(
        unit * task["value"],
        None if sigma is None else unit * sigma,
        (
            ("tokenizer", _digest(inputs.get(task["name"], {}).get("tokenizer"))),
            ("version", str(task["version"])),
            ("metric", metric),
            ("shots", "several" if (shots := task["num_fewshot"]) is None else str(shots)),
            ("bos", task.get("bos", AUTO)),
            ("items", f"{task['n']} ({task['digest'][:8]})"),
            ("dtype", dtype_of(record)),
        ),
        lower=metric in task.get("lower_is_better", []),
        accuracy=accuracy and "tasks" not in task,
    )
    return (task["name"] if accuracy else f"{task['name']} {metric}"), measure


def dtype_of(record: Sidecar) -> str:
    """Return the type that an evaluation computed in; older ones may only say `auto`."""
    asked = str(record.options.get("dtype"))
    return "float32" if asked == "auto" and record.run.device == "cpu" else asked
