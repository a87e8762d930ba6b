"""Accuracies on tasks through lm-eval: zero-shot unless a task says so, fp32 log-probabilities.

lm-eval makes the prompts and scores the answers. Here it is decided which metric stands for a task,
and its noise is computed: sigma = sqrt(acc (1 - acc) / N), as in the paper's Table 8.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from math import isfinite, sqrt
from numbers import Real
from pathlib import Path
from typing import Any

from prunecli.data import tokenizer
from prunecli.data.records import first_line
from prunecli.errors import InputError, NotANumber, Stopped
from prunecli.files import regular
from prunecli.interruption import safe_point
from prunecli.measuring import suite
from prunecli.measuring.perplexity import spread
from prunecli.measuring.tasks import Group, Task, quiet, refuse_absent, seed
from prunecli.model import companions
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Compute, Tasks, never

GENERATES = "generate_until"  # the type of tasks whose answers are written, not chosen
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names
DEFAULT_LENGTH = 256  # of an answer, in lm-eval
METRICS = ("acc_norm", "acc")  # the first that a task has stands for it


# what lm-eval raises where a task asks for something that does not work
WRONG_TASK = (
    AssertionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip


# means over items that are right (1) or wrong (0): those with a known noise
ACCURACIES = (*METRICS, "acc_bytes", "acc_mutual_info", "exact_match")
PLAIN = "none"  # the filter of tasks that name none


# padding and other texts in a batch change how products are rounded; a GPU idles without a batch
CPU_BATCH = 1


def tokenizer_digest(checkpoint: Checkpoint, folder: str | None) -> str:
    """Return the digest of all files of the tokenizer that tasks are read with.

    Not only the vocabulary decides which ids a text becomes, and where generation ends.
    Raises InputError if there is no tokenizer.
    """
    found = Path(folder or checkpoint.folder)
    if not tokenizer.present(str(found)):
        raise InputError(f"'{found}' has no tokenizer, which tasks need", "add --tokenizer DIR")
    sha = sha256()
    for path in companions.find(found, (*companions.TOKENIZER, "generation_config.json")):
        sha.update(path.name.encode() + b"\0" + sha256(regular.content(path)).digest())
    return sha.hexdigest()


def check_marks(
    checkpoint: Checkpoint, folder: str | None, wanted: Tasks, tasks: list[Task]
) -> None:
    """Raise InputError if tasks, or --bos, need ids that the tokenizer does not have."""
    generating = [task.name for task in tasks if task.loaded.OUTPUT_TYPE == GENERATES]
    for task in tasks:
        if task.name in generating:
            _check_room(checkpoint, task)
    if not generating and wanted.bos != tokenizer.ALWAYS:
        return
    found = folder or str(checkpoint.folder)
    marks = tokenizer.Tokenizer(found).marks
    marks.front(wanted.bos or tokenizer.AUTO)
    if generating and marks.eos is None:
        raise InputError(
            f"task '{generating[0]}' generates text, and the tokenizer of '{found}' has no end of "
            "sequence to stop at",
            "name its eos_token in tokenizer_config.json, or give another by --tokenizer DIR",
        )


def _check_room(checkpoint: Checkpoint, task: Task) -> None:
    """Raise InputError if a task's answers leave no position for its questions."""
    asked = task.loaded.get_config("generation_kwargs") or {}
    longest = next((asked[name] for name in LENGTHS if asked.get(name) is not None), DEFAULT_LENGTH)
    positions = checkpoint.arch.max_positions
    if isinstance(longest, bool) or not isinstance(longest, int) or not 0 < longest < positions:
        raise InputError(
            f"task '{task.name}' generates up to {longest} tokens, expected 1 to {positions - 1}: "
            f"the model has {positions} positions",
            "set max_gen_toks among generation_kwargs of the task",
        )


def batch_of(compute: Compute) -> int | str:
    """Return the default batch size of tasks, in sequences."""
    from prunecli.model.device import device_of

    return CPU_BATCH if device_of(compute).type == "cpu" else "auto"


def noise(times: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the greatest differences between repeated results of a task: `value`, `metrics`."""
    return {
        "repeats": len(times),
        "value": spread(one["value"] for one in times),
        "metrics": {
            name: spread(one["metrics"][name] for one in times) for name in times[0]["metrics"]
        },
    }


@dataclass
class Harness:
    """A whole model for any number of tasks, loaded when the first of them runs.

    `stop` is asked before every batch; where it says so, Stopped is raised.
    """

    checkpoint: Checkpoint
    compute: Compute
    wanted: Tasks
    tokenizer: str | None
    report: Report
    stop: Callable[[], bool] = never
    _model: Any = field(default=None, init=False)

    def run(self, task: Task, turn: int = 0) -> dict[str, Any]:
        """Return the results of one task as plain JSON.

        From one `turn` to the next an explicit batch size is halved, down to 1.

        `metrics` are all of the task, named as in lm-eval (`metric,filter`, or `metric` where the
        task names no filter), each with its noise in `sigmas` (None: unknown) and the number of its
        items in `counts`. `value` is that of `metric`, with its `sigma` and `n`. Raises InputError
        for a metric that is absent, NotANumber for one that is NaN or infinite.
        """
        with quiet(self.report.interactive):
            from lm_eval import evaluator

            if self._model is None:
                self._model = self._load()
            if self.wanted.batch_size is not None:
                self._model.batch_size_per_gpu = max(1, self.wanted.batch_size >> turn)
            seed(task.loaded)
            try:
                evaluated = evaluator.evaluate(
                    lm=self._model,
                    task_dict={"tasks": {task.name: task.loaded}, "groups": {}},
                    limit=self.wanted.limit,
                    bootstrap_iters=0,
                    log_samples=True,
                )
            except WRONG_TASK as error:
                raise InputError(
                    f"task '{task.name}' cannot be measured: {first_line(error)}",
                    "check its templates, filters and metrics",
                ) from None
        refuse_absent(task.name, _absent(task, evaluated["results"][task.name]))
        metrics = _numbers(task.name, evaluated["results"][task.name])
        # not every item needs to have every metric
        counts = Counter(
            _name(f"{metric},{sample['filter']}")
            for sample in evaluated["samples"][task.name]
            for metric in sample["metrics"]
        )
        better = evaluated["higher_is_better"][task.name]
        lower = [key for key in metrics if better.get(key.partition(",")[0]) is False]
        sigmas = {key: _sigma(key, value, counts[key]) for key, value in metrics.items()}
        summary = _summarise(metrics, sigmas, {key: counts[key] for key in metrics}, lower)
        return {
            "name": task.name,
            "version": task.version,
            "num_fewshot": task.num_fewshot,
            **summary,
            "limit": self.wanted.limit,
            "bos": self.wanted.bos or tokenizer.AUTO,
            "digest": task.digest,
        }

    def _load(self) -> Any:
        import torch
        from lm_eval.models.huggingface import HFLM

        from prunecli.model import stock
        from prunecli.model.device import device_of, dtype_of

        device = device_of(self.compute)
        dtype = dtype_of(self.compute, self.checkpoint)
        folder = self.tokenizer or str(self.checkpoint.folder)
        words = tokenizer.stock(folder)
        bos = self.wanted.bos or tokenizer.AUTO
        if bos == tokenizer.ALWAYS:
            tokenizer.begin_with_bos(words)
        # what a text without context begins with; tokenizers of bytes have nothing made for it
        begins = words.bos_token_id is not None or words.eos_token_id is not None

        class Harnessed(HFLM):  # type: ignore[misc]
            """With a tokenizer of a stranger, which may fail or take long."""

            def tok_encode(self, *texts: Any, **how: Any) -> Any:
                return tokenizer.asked(folder, partial(super().tok_encode, *texts, **how))

            def tok_batch_encode(self, *texts: Any, **how: Any) -> Any:
                return tokenizer.asked(folder, partial(super().tok_batch_encode, *texts, **how))

            def tok_decode(self, *ids: Any, **how: Any) -> Any:
                return tokenizer.asked(folder, partial(super().tok_decode, *ids, **how))

        with torch.no_grad():
            model = stock.loaded(self.checkpoint, dtype, device)
            model.register_forward_pre_hook(self._ask)
            return Harnessed(
                pretrained=model,
                tokenizer=words,
                prefix_token_id=None if begins else 0,
                add_bos_token=None if bos == tokenizer.AUTO else bos == tokenizer.ALWAYS,
                batch_size=self.wanted.batch_size or batch_of(self.compute),
                device=str(device),
                # log-probabilities of a 16-bit model lose a unit in a thousand otherwise
                softmax_dtype="float32",
            )

    def _ask(self, model: Any, inputs: Any) -> None:
        safe_point()
        if self.stop():
            raise Stopped("stopped within a task", "rerun the same command to resume")


def of_group(
    group: Group, tasks: Mapping[str, dict[str, Any]], limit: int | None
) -> dict[str, Any]:
    """Return the results of a group, as lm-eval averages those of its tasks; `tasks` by name.

    The noise of a mean follows from that of its parts. Raises InputError as `Group.keys` does.
    """
    own = {task.name: tasks[task.name] for task in group.tasks}
    known = {name: {_key(metric) for metric in one["metrics"]} for name, one in own.items()}
    wanted = group.keys(known)
    means = group.loaded.aggregate(
        {
            name: {
                **{_key(metric): value for metric, value in one["metrics"].items()},
                "sample_len": max(one["counts"].values()),
            }
            for name, one in own.items()
        }
    )
    metrics = _numbers(group.name, {key: means[key] for key in wanted})
    counts, sigmas = {}, {}
    for key, by_size in wanted.items():
        name = _name(key)
        sizes = [max(one["counts"].values()) for one in own.values()]
        counts[name] = sum(sizes)
        weights = [size / sum(sizes) if by_size else 1 / len(own) for size in sizes]
        parts = [one["sigmas"][name] for one in own.values()]
        known_all = all(part is not None for part in parts)
        terms = ((w * part) ** 2 for w, part in zip(weights, parts, strict=True))
        sigmas[name] = sqrt(sum(terms)) if known_all else None
    lower = [key for key in metrics if any(key in one["lower_is_better"] for one in own.values())]
    shots = {one["num_fewshot"] for one in own.values()}
    return {
        "name": group.name,
        "version": group.loaded.version,
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        **_summarise(metrics, sigmas, counts, lower),
        "limit": limit,
        "bos": next(iter(own.values()))["bos"],
        "digest": group.digest,
        "tasks": list(own),
    }


def _summarise(
    metrics: dict[str, float],
    sigmas: dict[str, float | None],
    counts: dict[str, int],
    lower: list[str],
) -> dict[str, Any]:
    """Return all metrics, and the one that stands for the task."""
    by_name = {key.partition(",")[0]: key for key in reversed(metrics)}
    metric = next((by_name[name] for name in METRICS if name in by_name), next(iter(metrics)))
    return {
        "metric": metric,
        "value": metrics[metric],
        "sigma": sigmas[metric],
        "n": counts[metric],
        **{name: metrics[name] for name in METRICS if name in metrics},
        "metrics": metrics,
        "sigmas": sigmas,
        "counts": counts,
        "lower_is_better": lower,
    }


def _key(name: str) -> str:
    """Return lm-eval's name of a metric."""
    return name if "," in name else f"{name},{PLAIN}"


def _name(key: str) -> str:
    """Return the name used here of a metric of lm-eval."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == PLAIN else key


def _absent(task: Task, results: Mapping[str, Any]) -> set[str]:
    """Return the metrics that a task declares but has no result for.

    Those of generated text may come as several, under other names.
    """
    own = callable(task.loaded.get_config("process_results"))
    if task.loaded.OUTPUT_TYPE == "generate_until" and not own:
        return set()
    return set(task.loaded.aggregation()) - {key.partition(",")[0] for key in results}


def _numbers(name: str, results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among lm-eval's results; raise NotANumber for NaN or infinity."""
    numbers = {}
    for key, value in results.items():
        metric, comma, _ = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not isinstance(value, Real) or not isfinite(value):
            shown = value if isinstance(value, Real) else type(value).__name__
            raise NotANumber(f"metric '{_name(key)}' of task '{name}' is {shown}")
        numbers[_name(key)] = float(value)
    return numbers


def is_accuracy(key: str) -> bool:
    """Return whether a metric is the share of items that are right."""
    return key.partition(",")[0] in ACCURACIES


def _sigma(key: str, value: float, count: int) -> float | None:
    """Return the noise of an accuracy over `count` items, None for other metrics."""
    if not is_accuracy(key) or not 0 <= value <= 1:
        return None
    return sqrt(value * (1 - value) / count)


def average(tasks: list[dict[str, Any]]) -> float | None:
    """Return the mean of the paper's eight tasks, None unless all of them were run."""
    values = {task["name"]: float(task["value"]) for task in tasks}
    if not set(suite.TASKS) <= values.keys():
        return None
    return sum(values[name] for name in suite.TASKS) / len(suite.TASKS)
