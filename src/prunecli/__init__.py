"""prunecli: prune large language models from the shell, and compare fairly.

The library verbs (`calibrate`, `score`, `prune`, `init`, `tokenize`, `train`, `evaluate`, `speed`,
`table`, `check`) are loaded on first use, so that `import prunecli` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


_VERBS = {
    "calibrate": "pruning.calibrate",
    "score": "pruning.score",
    "prune": "pruning.prune",
    "search_arch": "pruning.search_arch",
    "init": "training.init",
    "tokenize": "data.tokenize",
    "train": "training.train",
    "evaluate": "measuring.eval",
    "speed": "measuring.speed",
    "table": "tables.table",
    "check": "measuring.check",
}


__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
    return getattr(import_module(f"prunecli.{_VERBS[name]}"), name)
