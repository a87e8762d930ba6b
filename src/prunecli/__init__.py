"""prunecli: prune large language models from the shell, and compare fairly.

`prunecli.prune("in", "out", method="flap", ratio=0.5)` and its like (api.py) are loaded on first
use, so that `import prunecli` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


_VERBS = {
    "calibrate": "api",
    "score": "api",
    "prune": "api",
    "search_arch": "api",
    "init": "api",
    "tokenize": "api",
    "train": "api",
    "evaluate": "api",
    "speed": "api",
    "table": "api",
    "check": "api",
}


__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
    return getattr(import_module(f"prunecli.{_VERBS[name]}"), name)
