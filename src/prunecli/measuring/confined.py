"""lm-eval without the ways by which a task file of others would run code.

Its templates are rendered in jinja2's sandbox, which reaches no attribute that begins with an
underscore, in bounded time and memory, as answers are filtered and scored; and neither functions
beside a task file nor metrics that are none of its own are loaded, nor data in formats that can
hold more than rows. Its own tasks may name functions: they were installed with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jinja2 import BaseLoader, StrictUndefined, Template
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from prunecli import limits
from prunecli.data.records import first_line
from prunecli.errors import InputError
from prunecli.files import regular, strict
from prunecli.interruption import safe_point

LONGEST = 1 << 20  # characters that a template may make of one item
MEMORY = 1 << 29  # bytes that it may take meanwhile
SECONDS = 2.0
LARGEST_POWER = 1000
LARGEST = 1_000_000  # bytes of a task file
UNFOLDED = 10_000_000  # characters of all that it names, where each alias is written out
MERGE = "tag:yaml.org,2002:merge"
READ = "read it, and use --allow-code if it is as it should be"
# formats of the datasets library that hold rows, and nothing that is run or asked elsewhere
ROWS = {"arrow", "csv", "json", "parquet", "text"}

_own: dict[str, Any] = {}
_failed: list[InputError] = []  # files of a folder that lm-eval's index leaves out without a word


class Bounded(Template):
    """A template that is rendered in bounded time and memory, whichever way it takes."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Return the text that it makes; raise InputError where that is too much."""
        safe_point()
        with _bounded("a template"):
            text = super().render(*args, **kwargs)
        if len(text) > LONGEST:
            raise _refused("a template", f"it makes more than {LONGEST} characters")
        return text


@contextmanager
def _bounded(part: str) -> Iterator[None]:
    try:
        with limits.seconds(SECONDS), limits.memory(MEMORY):
            yield
    except (limits.TookTooLong, MemoryError, OverflowError, SecurityError) as error:
        raise _refused(part, str(error) or "it takes too much memory") from None


def _refused(part: str, why: str) -> InputError:
    return InputError(f"{part} of a task file is not for any text: {why}", READ)


def check_file(path: Path) -> None:
    """Raise InputError for a task file that stands for much more than is written in it."""
    content = regular.content(path, LARGEST)
    try:
        values = yaml.load(content, _plain())
        strict.check_depth(values)
        size = _unfolded(values, {})
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = first_line(error)
        raise InputError(f"task file '{path.name}' is not readable: {why}", READ) from None
    if size > UNFOLDED:
        raise InputError(
            f"task file '{path.name}' names the same values again and again: {size:.2g} characters",
            READ,
        )


def _plain() -> Any:
    """Return a class that loads YAML without functions and merges."""

    class Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Refuse `<<`: a few lines of them make millions of keys."""
            if any(key.tag == MERGE for key, _ in node.value):
                raise ValueError("it merges mappings by '<<', expected them written out")

    Plain.add_multi_constructor("!", lambda loader, tag, node: None)
    return Plain


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """Return how many characters a value has, where it is written out wherever it is named."""
    if not isinstance(value, dict | list):
        return 1 + (len(value) if isinstance(value, str) else 0)
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(value)]


class Sandbox(SandboxedEnvironment):
    """jinja2's sandbox, where a power is bounded too: no signal interrupts one."""

    template_class = Bounded
    intercepted_binops = frozenset(["**"])

    def from_string(self, *args: Any, **kwargs: Any) -> Any:
        """Return a template; its constants are computed here."""
        with _bounded("a template"):
            return super().from_string(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return what a power is; raise SecurityError for one that takes too long."""
        if max(left, right) > LARGEST_POWER:
            raise SecurityError("a power in it is too large")
        return super().call_binop(context, operator, left, right)


def set_up(confine: bool) -> None:
    """Have lm-eval load and render tasks confined, or as it does by itself."""
    from lm_eval import utils
    from lm_eval.api import filter, metrics, task
    from lm_eval.tasks import _factory, _index, _yaml_loader, manager

    ensemble, configurable = filter.FilterEnsemble, task.ConfigurableTask
    if not _own:
        _own.update(
            env=utils.env, function=_yaml_loader._import_func_in_yml, metric=task.get_metric,
            load=_yaml_loader.load_yaml, apply=ensemble.apply, download=configurable.download,
            score=configurable.process_results,
        )  # fmt: skip
    assert metrics, "it fills the registry"
    utils.env = _environment() if confine else _own["env"]
    _yaml_loader._import_func_in_yml = _function if confine else _own["function"]
    task.get_metric = _metric if confine else _own["metric"]
    _failed.clear()
    for module in (_yaml_loader, _factory, _index, manager):
        module.load_yaml = partial(_load, confine)
    ensemble.apply = _apply if confine else _own["apply"]
    configurable.process_results = _score if confine else _own["score"]
    configurable.download = _download if confine else _own["download"]


def _environment() -> Sandbox:
    env = Sandbox(
        loader=BaseLoader(),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters.update(_own["env"].filters)
    return env


def _is_installed(path: str | Path) -> bool:
    """Return whether a file or folder came with lm-eval."""
    from lm_eval import utils

    return Path(path).resolve().is_relative_to(Path(utils.__file__).resolve().parent)


def _function(name: str, folder: Path) -> Any:
    if not _is_installed(folder):
        raise InputError(
            f"a task file in '{folder}' can run code ('{name}')",
            "read it, then use --allow-code",
        )
    return _own["function"](name, folder)


def _metric(name: str, hf_evaluate_metric: bool = False) -> Any:
    from lm_eval.api import registry

    if hf_evaluate_metric or name not in registry.metric_registry:
        raise InputError(
            f"a task's metric '{name}' is none of lm-eval's, and may be code",
            "read it, then use --allow-code",
        )
    return _own["metric"](name)


def _load(confine: bool, path: str | Path, **how: Any) -> Any:
    """Load a task file; those that it includes come here too."""
    try:
        if confine and not _is_installed(path):
            check_file(Path(path))
        return _own["load"](path, **how)
    except InputError as error:
        _failed.append(error)
        raise
    except Exception as error:
        # what reading a file and those that it includes raises has no common base
        name, why = Path(path).name, first_line(error)
        _failed.append(InputError(f"task file '{name}' cannot be loaded: {why}"))
        raise


def check_index() -> None:
    """Raise InputError for the first file that could not be loaded since `set_up`."""
    if _failed:
        raise _failed[0]


def _apply(filters: Any, instances: Sequence[Any]) -> None:
    """Filter each answer in bounded time: an expression can take for ever on one."""
    for instance in instances:
        safe_point()
        with _bounded("a filter"):
            _own["apply"](filters, [instance])


def _score(task: Any, document: Any, answers: Any) -> Any:
    """Score the answers to a document in bounded time: metrics have expressions too."""
    with _bounded("a metric"):
        return _own["score"](task, document, answers)


def _download(task: Any, dataset_kwargs: Any = None, **more: Any) -> None:
    """Load the data of a task; raise InputError for such as could run code, or ask elsewhere."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    kind, name = task.DATASET_PATH, task.config.task
    if kind in _PACKAGED_DATASETS_MODULES and kind not in ROWS:
        known = ", ".join(sorted(ROWS))
        raise InputError(f"task '{name}' has its data in '{kind}', expected one of {known}")
    if (dataset_kwargs or {}).get("trust_remote_code"):
        raise InputError(f"task '{name}' asks for data that need code", READ)
    _own["download"](task, dataset_kwargs, **more)
