"""prunecli: prune large language models from the shell, and compare fairly.

`prunecli.prune("in", "out", method="flap", ratio=0.5)` and its like (api.py) are loaded on first
use, so that `import prunecli` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunecli import errors, report, settings
    from prunecli.api import (
        calibrate,
        check,
        evaluate,
        figure,
        init,
        log,
        prune,
        score,
        search_arch,
        speed,
        table,
        tokenize,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "calibrate",
    "check",
    "errors",
    "evaluate",
    "figure",
    "init",
    "log",
    "prune",
    "report",
    "score",
    "search_arch",
    "settings",
    "speed",
    "table",
    "tokenize",
    "train",
]


# modules that a caller needs beside the functions: errors to catch, records, and a report to extend
_MODULES = ("errors", "report", "settings")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"prunecli.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
    return getattr(import_module("prunecli.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
