"""What one evaluation measured, by column: the loss or perplexity of a D, the value of a task."""

from typing import Any

from prunecli.data.tokenizer import AUTO
from prunecli.files.sidecar import Sidecar
from prunecli.measuring.harness import is_accuracy
from prunecli.tables.entries import LOSS, PERPLEXITIES, Metric, standard_error


def metrics_of(record: Sidecar) -> dict[str, Metric]:
    """Return what an evaluation measured: perplexity or loss per D, then the tasks."""
    metrics = {}
    sources = [entry for entry in record.inputs if entry.role == "evaluation"]
    tokenizers = {e.digest: (e.model_extra or {}).get("tokenizer") for e in sources}
    data = record.results.get("data", [])
    for key, one in zip(_columns(data), data, strict=True):
        protocol = (
            ("tokenizer", _short(tokenizers.get(one["digest"]))),
            ("tokens", one["digest"][:8]),
            ("windows", str(one["windows"])),
            ("length", str(one["seq_len"])),
            ("part", one["source"]),
            ("dtype", dtype_of(record)),
        )
        value, losses = one["loss"], one.get("window_losses", [])
        if key in PERPLEXITIES:
            value = one["perplexity"]
            # to first order a window's loss counts as many times
            losses = [value * loss for loss in losses]
        sd = standard_error([losses])
        metrics[key] = Metric(value, sd, protocol, tuple(losses), lower=True)
    return metrics | dict(_of_task(record, task) for task in record.results.get("tasks", []))


def _columns(data: list[dict[str, Any]]) -> list[str]:
    """Return the column of every D of one evaluation; other tokens have another column.

    Of several parts of a named set the last has the paper's column, as a suite's come last. Other
    D of one name are told apart by their tokens.
    """
    keys = [_column(one) for one in data]
    named = (LOSS.key, *PERPLEXITIES)

    def alone(number: int) -> bool:
        same_name = [other for other, key in enumerate(keys) if key == keys[number]]
        same_tokens = len({data[other]["digest"] for other in same_name}) == 1
        return same_tokens or (keys[number] in named and number == same_name[-1])

    return [
        key if alone(number) else f"loss_{one['source']} {one['digest'][:8]}"
        for number, (key, one) in enumerate(zip(keys, data, strict=True))
    ]


def _column(data: dict[str, Any]) -> str:
    """Return the column of a D: one of the paper's where it is that set, else its own.

    A perplexity beyond all numbers is none: its loss is shown.
    """
    name = data["source"].partition(":")[0]
    if f"ppl_{name}" in PERPLEXITIES and data["perplexity"] is not None:
        return f"ppl_{name}"
    return LOSS.key if name == "dclm" else f"loss_{data['source']}"


def _of_task(record: Sidecar, task: dict[str, Any]) -> tuple[str, Metric]:
    """Return a task's main metric: an accuracy in points, anything else as it is."""
    inputs = {(e.model_extra or {}).get("name"): e.model_extra or {} for e in record.inputs}
    name, sigma = task["metric"], task["sigma"]
    accuracy = is_accuracy(name)
    unit = 100 if accuracy else 1
    metric = Metric(
        unit * task["value"],
        None if sigma is None else unit * sigma,
        (
            ("tokenizer", _short(inputs.get(task["name"], {}).get("tokenizer"))),
            ("version", str(task["version"])),
            ("metric", name),
            ("shots", "several" if (shots := task["num_fewshot"]) is None else str(shots)),
            ("bos", task.get("bos", AUTO)),
            ("items", f"{task['n']} ({task['digest'][:8]})"),
            ("dtype", dtype_of(record)),
        ),
        lower=name in task.get("lower_is_better", []),
        accuracy=accuracy and "tasks" not in task,
    )
    return (task["name"] if accuracy else f"{task['name']} {name}"), metric


def _short(digest: Any) -> str:
    """Return the first letters of a digest, by which metrics are told apart."""
    return "unknown" if digest is None else str(digest)[:8]


def dtype_of(record: Sidecar) -> str:
    """Return the type that an evaluation computed in; older ones may only say `auto`."""
    asked = str(record.options.get("dtype"))
    return "float32" if asked == "auto" and record.run.device == "cpu" else asked
