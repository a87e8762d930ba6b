"""Tasks of lm-eval with their data, loaded before any model runs, and what identifies them.

A task is identified by what lm-eval asks: every request that it builds (with description, examples
and delimiters), the documents that answers are scored by, and how they are scored.
"""

import contextlib
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunecli.data.records import first_line
from prunecli.errors import InputError, PruneError, UsageError, of_memory, refused, suggest
from prunecli.files import regular
from prunecli.files.sidecar import Input
from prunecli.measuring import confined
from prunecli.report import Report
from prunecli.settings import Tasks

# how a task file reaches Python: by a tag, or out of a template
CODE = re.compile(r"!function|\{[{%][^}]*(?:__|\|\s*attr)")
FEWSHOT_SEED = 1234  # of lm-eval's own program


# keys of a task's config that decide how answers are scored; the rest shows in the requests
JUDGING = ("output_type", "metric_list", "filter_list", "process_results")


# an answer to a request of each kind, in the form in which lm-eval scores it
ANSWERS: dict[str, Any] = {
    "multiple_choice": (0.0, False),
    "loglikelihood": (0.0, False),
    "loglikelihood_rolling": 0.0,
}


@dataclass(frozen=True)
class Task:
    """One task with its data; `loaded` is lm-eval's, `digest` that of its requests and scoring."""

    name: str
    loaded: Any
    version: str
    num_fewshot: int
    items: int
    digest: str

    def as_input(self, tokenizer: str) -> Input:
        """Return the task as an input of a sidecar: what must be equal for equal results.

        `tokenizer` is the digest of the one that reads it.
        """
        fields = {"name": self.name, "version": self.version, "num_fewshot": self.num_fewshot}
        fields |= {"items": self.items, "tokenizer": tokenizer}
        return Input.model_validate({"role": "task", "digest": self.digest, **fields})


@dataclass(frozen=True)
class Group:
    """A group of tasks with metrics of its own: means over its tasks."""

    name: str
    loaded: Any
    tasks: tuple[Task, ...]

    @property
    def digest(self) -> str:
        """What identifies its results: its tasks, and how they are averaged."""
        means = [
            [one.metric, one.filter_list, one.weight_by_size]
            for one in self.loaded.aggregate_metric_list
        ]
        content = [means, [(task.name, task.digest) for task in self.tasks]]
        return sha256(json.dumps(content).encode()).hexdigest()

    def as_input(self, tokenizer: str) -> Input:
        """Return the group as an input of a sidecar, beside those of its tasks."""
        fields = {"name": self.name, "tokenizer": tokenizer}
        return Input.model_validate({"role": "group", "digest": self.digest, **fields})

    def keys(self, known: Mapping[str, Iterable[str]]) -> dict[str, bool]:
        """Return its metrics, as lm-eval names them, and whether tasks are weighted by size.

        `known` are the metrics of each task. Raises InputError if one of its tasks lacks one: the
        mean would be that of the others.
        """
        by_size: dict[str, bool] = {}
        for one in self.loaded.aggregate_metric_list:
            all_keys = [key for task in self.tasks for key in known[task.name]]
            every = [key for key in all_keys if key.partition(",")[0] == one.metric]
            if one.filter_list is not None:
                every = [f"{one.metric},{name}" for name in one.filter_list]
            for key in dict.fromkeys(every or [one.metric]):
                lacking = [task.name for task in self.tasks if key not in known[task.name]]
                if lacking:
                    raise InputError(
                        f"group '{self.name}' is a mean of '{key}', which "
                        f"{len(lacking)} of its {len(self.tasks)} tasks lack ('{lacking[0]}')",
                        "name its tasks instead",
                    )
                by_size[key] = bool(one.weight_by_size)
        return by_size


def load(wanted: Tasks, report: Report) -> tuple[list[Task], list[Group]]:
    """Load tasks and their data, so that nothing can be missing once a model runs.

    Raises UsageError for names that are no tasks, and InputError for data that cannot be loaded,
    for what cannot be measured, and for a local task file that can run code without permission.
    """
    if not wanted.names:
        return [], []
    if wanted.limit is not None and wanted.limit < 1:
        raise UsageError(f"--limit {wanted.limit}: expected at least 1")
    _check_folder(wanted)
    with quiet():
        confined.set_up(wanted.include_path is not None and not wanted.allow_code)
    manager = _manager(wanted, report)
    for name in wanted.names:
        if name not in manager.all_tasks:
            close = suggest(name, list(manager.all_tasks))
            raise UsageError(f"unknown task '{name}'{close}", "lm-eval ls tasks lists all")
    loaded: dict[str, list[Any]] = defaultdict(list)
    groups: dict[str, Any] = {}
    for name in report.progress(wanted.names, "loading tasks", unit="task"):
        found = _loaded(manager, name)
        groups |= found["groups"]
        members = [task for group in found["groups"].values() for task in group.get_all_tasks()]
        for task in {id(task): task for task in [*found["tasks"].values(), *members]}.values():
            loaded[task.task_name].append(task)
    tasks = {
        name: _one([_task(name, task, wanted) for task in found]) for name, found in loaded.items()
    }
    means = [
        Group(name, group, tuple({t.task_name: tasks[t.task_name] for t in members}.values()))
        for name, group in groups.items()
        if group.has_aggregation and (members := group.get_all_tasks())
    ]
    for group in means:
        group.keys({task.name: _keys(task.loaded) for task in group.tasks})
    return list(tasks.values()), means


def _manager(wanted: Tasks, report: Report) -> Any:
    """Return lm-eval's index; of local tasks alone where these suffice, since all take long."""
    with quiet():
        from lm_eval.tasks import TaskManager

        if wanted.include_path is not None:
            manager = TaskManager(include_path=wanted.include_path, include_defaults=False)
            confined.check_index()
            if all(_closed(manager.task_index, name) for name in wanted.names):
                return manager
        report.debug("indexing the tasks of lm-eval")
        return TaskManager(include_path=wanted.include_path)


def _closed(index: Mapping[str, Any], name: Any) -> bool:
    """Return whether an index has all tasks that a name stands for."""
    if not isinstance(name, str) or name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    return not isinstance(members, list) or all(_closed(index, member) for member in members)


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    """Return the tasks and groups that a name stands for, with their data."""
    try:
        with quiet():
            made: dict[str, Any] = manager.load([name])
    except PruneError:
        raise
    except Exception as error:
        # what fetching and reading may raise has no common base
        raise refused(error) or InputError(
            f"task '{name}' cannot load its data: {first_line(error)}",
            "download it once with a network and copy the cache (HF_HOME), "
            "or give a local task by --include-path",
        ) from None
    return made


def _check_folder(wanted: Tasks) -> None:
    """Refuse task files that can run code, unless that was allowed."""
    if wanted.include_path is None:
        return
    folder = Path(wanted.include_path)
    if not regular.is_dir(folder):
        raise InputError(f"no such folder: '{folder}'", "check --include-path")
    if wanted.allow_code:
        return
    for path in sorted(folder.rglob("*.y*ml")):
        confined.check_file(path)
        code = CODE.search(regular.content(path).decode("utf-8", "replace"))
        if code is not None:
            raise InputError(
                f"task file '{path.name}' can run code ('{code[0]}' in it)",
                "read it, then use --allow-code",
            )


def _one(found: list[Task]) -> Task:
    """Return the task of a name; raise UsageError if the name stands for tasks that differ."""
    if len({task.digest for task in found}) > 1:
        raise UsageError(
            f"task '{found[0].name}' is asked for twice, in forms that differ (as groups may set)",
            "evaluate them one after the other",
        )
    return found[0]


def _task(name: str, task: Any, wanted: Tasks) -> Task:
    _check_measurable(name, task)
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    seed(task)
    try:
        with quiet():
            digest, count = _asked(name, task, wanted)
    except PruneError:
        raise
    except Exception as error:
        # templates and code of a task may raise anything
        raise of_memory(error) or InputError(
            f"task '{name}' cannot make its requests: {first_line(error)}",
            "check that its templates fit its data",
        ) from None
    if not count:
        raise InputError(f"task '{name}' has no items")
    shots = int(task.get_config("num_fewshot"))
    return Task(name, task, str(task.VERSION), shots, count, digest)


def _check_measurable(name: str, task: Any) -> None:
    """Raise InputError for tasks that cannot be measured, before anything runs."""
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task '{name}' has images or sound, which these models cannot read")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(
            f"task '{name}' runs code that the model writes, which prunecli never does",
            "run it by lm-eval itself, in a sandbox",
        )
    metrics = set(task.aggregation())
    if not metrics or "bypass" in metrics:
        raise InputError(f"task '{name}' has no metric", "add a metric_list to it")
    listed = [one["metric"] for one in task.get_config("metric_list") or []]
    filters = [found.name for found in getattr(task, "_filters", [])]
    for what, names in (("metric", listed), ("filter", filters)):
        twice = [one for number, one in enumerate(names) if one in names[:number]]
        if twice:
            raise InputError(
                f"task '{name}' has {what} '{_named(twice[0])}' twice, so one result would be lost",
                "give each its own name, or its own task",
            )


def _check_given(name: str, task: Any) -> None:
    """Raise InputError for a metric that lm-eval does not give for this kind of task."""
    answer = ANSWERS.get(task.OUTPUT_TYPE)
    if answer is None or callable(task.get_config("process_results")):
        return
    first = task.instances[0]
    count = sum(request.doc_id == first.doc_id for request in task.instances)
    given = task.process_results(first.doc, [answer] * count)
    refuse_absent(name, set(task.aggregation()) - given.keys())


def refuse_absent(name: str, absent: Iterable[str]) -> None:
    """Raise InputError if a task asks for metrics that it did not get."""
    for metric in sorted(absent):
        raise InputError(
            f"task '{name}' asks for metric '{metric}', which lm-eval does not give for it",
            "leave it out of its metric_list",
        )


def _keys(task: Any) -> set[str]:
    """Return the metrics that a task declares, each by each of its filters."""
    filters = [found.name for found in getattr(task, "_filters", [])]
    return {f"{metric},{name}" for metric in task.aggregation() for name in filters}


def seed(task: Any) -> None:
    """Seed the examples of a task: building its requests twice must give the same."""
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _asked(name: str, task: Any, wanted: Tasks) -> tuple[str, int]:
    """Return the digest of a task's requests and of how it scores them, and its items' number."""
    sha, count = sha256(), 0

    def add(*content: Any) -> None:
        sha.update(json.dumps(content, sort_keys=True, default=_named).encode() + b"\n")

    if not len(task.eval_docs):
        return "", 0
    task.build_all_requests(limit=wanted.limit)
    for request in task.instances:
        add(request.request_type, request.doc_id, request.arguments, request.repeats)
    _check_given(name, task)
    # evaluation builds them again; until then those of many tasks would only take memory
    task._instances = None
    for _, document in task.doc_iterator(limit=wanted.limit):
        count += 1
        add(document, task.doc_to_target(document))
    config = task.dump_config()
    add({key: config.get(key) for key in JUDGING})
    for path in _code(config, wanted):
        sha.update(regular.content(path))
    return sha.hexdigest(), count


def _named(value: Any) -> str:
    """Return the name of something that JSON cannot hold, never with its address in memory."""
    if isinstance(value, str):
        return value
    return str(getattr(value, "__qualname__", type(value).__name__))


def _code(config: Mapping[str, Any], wanted: Tasks) -> list[Path]:
    """Return the Python files that a local task may call, none for those of lm-eval."""
    source = (config.get("metadata") or {}).get("config_source", "")
    folder = regular.resolved(wanted.include_path or "")
    if not wanted.allow_code or folder not in Path(source).resolve().parents:
        return []
    return sorted(folder.rglob("*.py"))


@contextlib.contextmanager
def quiet(watched: bool = False) -> Iterator[None]:
    """Keep lm-eval off stdout, and off stderr except for progress that somebody watches."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    errors = contextlib.nullcontext() if watched else contextlib.redirect_stderr(io.StringIO())
    try:
        with contextlib.redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        logging.disable(level)
