"""lm-eval without the ways by which a task file of others would run code.

Its templates are rendered in jinja2's sandbox, which reaches no attribute that begins with an
underscore, in bounded time and memory; and neither functions beside a task file nor metrics that
are none of its own are loaded. Its own tasks may name functions: they were installed with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, StrictUndefined, Template
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from prunecli import limits
from prunecli.errors import InputError
from prunecli.interruption import safe_point

LONGEST = 1 << 20  # characters that a template may make of one item
MEMORY = 1 << 29  # bytes that it may take meanwhile
SECONDS = 2.0
LARGEST_POWER = 1000

_own: dict[str, Any] = {}


class Bounded(Template):
    """A template that is rendered in bounded time and memory, whichever way it takes."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Return the text that it makes; raise InputError where that is too much."""
        safe_point()
        with _bounded():
            text = super().render(*args, **kwargs)
        if len(text) > LONGEST:
            raise _refused(f"it makes more than {LONGEST} characters")
        return text


@contextmanager
def _bounded() -> Iterator[None]:
    try:
        with limits.seconds(SECONDS), limits.memory(MEMORY):
            yield
    except (limits.TookTooLong, MemoryError, OverflowError, SecurityError) as error:
        raise _refused(str(error) or "it takes too much memory") from None


def _refused(why: str) -> InputError:
    return InputError(
        f"a template of a task file is not for any text: {why}",
        "read it, and use --allow-code if it is as it should be",
    )


class Sandbox(SandboxedEnvironment):
    """jinja2's sandbox, where a power is bounded too: no signal interrupts one."""

    template_class = Bounded
    intercepted_binops = frozenset(["**"])

    def from_string(self, *args: Any, **kwargs: Any) -> Any:
        """Return a template; its constants are computed here."""
        with _bounded():
            return super().from_string(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return what a power is; raise SecurityError for one that takes too long."""
        if max(left, right) > LARGEST_POWER:
            raise SecurityError("a power in it is too large")
        return super().call_binop(context, operator, left, right)


def set_up(confine: bool) -> None:
    """Have lm-eval load and render tasks confined, or as it does by itself."""
    from lm_eval import utils
    from lm_eval.api import metrics, registry, task
    from lm_eval.tasks import _yaml_loader

    if not _own:
        _own.update(
            env=utils.env, function=_yaml_loader._import_func_in_yml, metric=task.get_metric
        )
    assert metrics, "it fills the registry"
    installed = Path(utils.__file__).resolve().parent

    def function(name: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(installed):
            raise InputError(
                f"a task file in '{folder}' can run code ('{name}')",
                "read it, then use --allow-code",
            )
        return _own["function"](name, folder)

    def metric(name: str, hf_evaluate_metric: bool = False) -> Any:
        if hf_evaluate_metric or name not in registry.metric_registry:
            raise InputError(
                f"a task's metric '{name}' is none of lm-eval's, and may be code",
                "read it, then use --allow-code",
            )
        return _own["metric"](name)

    env = _own["env"]
    if confine:
        env = Sandbox(
            loader=BaseLoader(),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )
        env.filters.update(_own["env"].filters)
    utils.env = env
    _yaml_loader._import_func_in_yml = function if confine else _own["function"]
    task.get_metric = metric if confine else _own["metric"]
