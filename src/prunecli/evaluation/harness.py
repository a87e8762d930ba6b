"""Accuracy on tasks through lm-eval: zero-shot unless a task says so, fp32 log-probabilities.

lm-eval makes the prompts and scores the answers; what is ours is which metric is stated, and its
noise: sigma = sqrt(acc (1 - acc) / N), as in the paper's Table 8.
"""

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.evaluation import suite
from prunecli.io import tokenizer
from prunecli.io.checkpoint import Checkpoint
from prunecli.io.sidecar import Input
from prunecli.io.textfiles import first_line
from prunecli.report import Report
from prunecli.settings import Compute, Tasks

METRICS = ("acc_norm", "acc")  # the first that a task has is the one that is stated
CPU_BATCH = 8
# how a task file reaches Python: by a tag, or out of a template
CODE = re.compile(r"!function|\{[{%][^}]*(?:__|\|\s*attr)")


@dataclass(frozen=True)
class Task:
    """One task with its data, before any model has seen it."""

    name: str
    loaded: Any
    version: str
    num_fewshot: int
    items: int
    digest: str

    def as_input(self) -> Input:
        """Return the task as an input of a sidecar: what must be equal for equal results."""
        fields = {"name": self.name, "version": self.version, "num_fewshot": self.num_fewshot}
        return Input.model_validate(
            {"role": "task", "digest": self.digest, **fields, "items": self.items}
        )


def check_tokenizer(checkpoint: Checkpoint, folder: str | None) -> None:
    """Raise InputError unless there is a tokenizer: tasks are text."""
    found = folder or str(checkpoint.folder)
    if not tokenizer.present(found):
        raise InputError(f"'{found}' has no tokenizer, which tasks need", "add --tokenizer DIR")


def load(wanted: Tasks, report: Report) -> list[Task]:
    """Load tasks and their data, so that nothing can be missing once a model runs.

    Raises UsageError for names that are no tasks, InputError for data that cannot be had or a
    local task file that can run code and may not.
    """
    if not wanted.names:
        return []
    _check_folder(wanted)
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager: Any = None
        if wanted.include_path is not None:
            # the index of all the tasks of lm-eval takes ten seconds, local ones none
            manager = TaskManager(include_path=wanted.include_path, include_defaults=False)
        if manager is None or not set(wanted.names) <= set(manager.all_tasks):
            report.detail("indexing the tasks of lm-eval")
            manager = TaskManager(include_path=wanted.include_path)
    for name in wanted.names:
        if name not in manager.all_tasks:
            close = suggest(name, list(manager.all_tasks))
            raise UsageError(f"unknown task '{name}'{close}", "lm-eval ls tasks lists all")
    found: dict[str, Any] = {}
    for name in report.track(wanted.names, "loading tasks", unit="task"):
        found |= _loaded(manager, name)
    return [_task(name, task, wanted.limit) for name, task in found.items()]


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    """Return the tasks that a name stands for (a group has several), with their data."""
    try:
        with _quiet():
            tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:
        # what fetching and reading may raise has no common base
        raise InputError(
            f"task '{name}' cannot load its data: {first_line(error)}",
            "fetch it once where there is a network and bring the cache (HF_HOME), "
            "or give a local task by --include-path",
        ) from None
    return tasks


def _check_folder(wanted: Tasks) -> None:
    """Refuse task files that can run code, unless that was allowed."""
    if wanted.include_path is None:
        return
    folder = Path(wanted.include_path)
    if not folder.is_dir():
        raise InputError(f"no such folder: '{folder}'", "check --include-path")
    if wanted.allow_code:
        return
    for path in sorted(folder.rglob("*.y*ml")):
        found = CODE.search(path.read_text("utf-8", "replace"))
        if found is not None:
            raise InputError(
                f"task file '{path.name}' can run code ('{found[0]}' in it)",
                "read it, then give --allow-code",
            )


def _task(name: str, task: Any, limit: int | None) -> Task:
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=1234)
    sha, count = sha256(), 0
    for document in task.eval_docs:
        if limit is not None and count == limit:
            break
        count += 1
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
        shown = [task.doc_to_text(document), choices, task.doc_to_target(document)]
        sha.update(json.dumps(shown, default=str).encode())
    if not count:
        raise InputError(f"task '{name}' has no items")
    shots = int(task.get_config("num_fewshot"))
    return Task(name, task, str(task.VERSION), shots, count, sha.hexdigest())


@dataclass
class Harness:
    """A model loaded whole, for any number of tasks; loaded when the first of them runs."""

    checkpoint: Checkpoint
    compute: Compute
    wanted: Tasks
    tokenizer: str | None
    report: Report
    _model: Any = field(default=None, init=False)

    def run(self, task: Task) -> dict[str, Any]:
        """Return the figures of one task as plain JSON.

        `value` is the metric stated in `metric`, `sigma` its noise over `n` items; every metric of
        lm-eval is kept beside it.
        """
        with _quiet(self.report.watched):
            from lm_eval import evaluator

            if self._model is None:
                self._model = self._load()
            made = evaluator.evaluate(
                lm=self._model,
                task_dict={"tasks": {task.name: task.loaded}, "groups": {}},
                limit=self.wanted.limit,
                bootstrap_iters=0,
                log_samples=False,
            )
        count = int(made["n-samples"][task.name]["effective"])
        metrics = {
            key.partition(",")[0]: float(value)
            for key, value in made["results"][task.name].items()
            if "," in key and "stderr" not in key and isinstance(value, int | float)
        }
        if not metrics:
            raise InputError(f"task '{task.name}' has no metric that is a number")
        metric = next((name for name in METRICS if name in metrics), next(iter(metrics)))
        value = metrics[metric]
        return {
            "name": task.name,
            "version": task.version,
            "num_fewshot": task.num_fewshot,
            "metric": metric,
            "value": value,
            "sigma": sqrt(value * (1 - value) / count) if metric in METRICS else None,
            "n": count,
            "limit": self.wanted.limit,
            "digest": task.digest,
            **{key: metrics[key] for key in METRICS if key in metrics},
            "metrics": metrics,
        }

    def _load(self) -> Any:
        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as of_transformers

        from prunecli.stats.run import device_of, dtype_of

        of_transformers.disable_progress_bar()
        folder = str(self.checkpoint.folder)
        device = device_of(self.compute)
        dtype = dtype_of(self.compute, self.checkpoint)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        words = AutoTokenizer.from_pretrained(self.tokenizer or folder)
        # what a text without context begins with; tokenizers of bytes have nothing made for it
        begins = words.bos_token_id is not None or words.eos_token_id is not None
        batch: int | str = CPU_BATCH if device.type == "cpu" else "auto"
        with torch.no_grad():
            return HFLM(
                pretrained=model.to(device).eval(),
                tokenizer=words,
                prefix_token_id=None if begins else 0,
                batch_size=self.wanted.batch_size or batch,
                device=str(device),
                # log-probabilities of a 16-bit model lose a unit in a thousand otherwise
                softmax_dtype="float32",
            )


def average(tasks: list[dict[str, Any]]) -> float | None:
    """Return the mean of the paper's eight tasks, None unless all of them are there."""
    values = {task["name"]: float(task["value"]) for task in tasks}
    if not set(suite.TASKS) <= values.keys():
        return None
    return sum(values[name] for name in suite.TASKS) / len(suite.TASKS)


@contextlib.contextmanager
def _quiet(watched: bool = False) -> Iterator[None]:
    """Keep lm-eval off stdout, and off stderr but for its progress where somebody watches."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    errors = contextlib.nullcontext() if watched else contextlib.redirect_stderr(io.StringIO())
    try:
        with contextlib.redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        logging.disable(level)
