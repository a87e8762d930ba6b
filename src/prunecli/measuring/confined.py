"""lm-eval without the ways by which a task file of others would run code.

Its templates are rendered in jinja2's sandbox, which reaches no attribute that begins with an
underscore; and neither functions beside a task file nor metrics that are none of its own are
loaded. Its own tasks may name functions: they were installed with it.
"""

from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from prunecli.errors import InputError

LONGEST = 1 << 24  # characters that a template may make of one text

_own: dict[str, Any] = {}


class Sandbox(SandboxedEnvironment):
    """jinja2's sandbox; a text that is repeated without end is refused too."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return what a product is; raise SecurityError for one that fills the memory."""
        numbers = all(isinstance(one, int | float) for one in (left, right))
        sizes = [len(one) if hasattr(one, "__len__") else one for one in (left, right)]
        if (operator == "**" and max(sizes) > 1000) or (
            not numbers and sizes[0] * sizes[1] > LONGEST
        ):
            raise SecurityError("it makes more than a text can hold")
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
        env = Sandbox(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        env.filters.update(_own["env"].filters)
    utils.env = env
    _yaml_loader._import_func_in_yml = function if confine else _own["function"]
    task.get_metric = metric if confine else _own["metric"]
