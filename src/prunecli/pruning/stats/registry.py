"""All statistics by name."""

from pathlib import Path

from prunecli.pruning.stats._base import Statistic
from prunecli.registry import Registry

_REGISTRY = Registry("prunecli.pruning.stats", str(Path(__file__).parent), "statistic", "STATISTIC")


def names() -> list[str]:
    """Return the names of all statistics, as methods' records spell them."""
    return [name.replace("-", "_") for name in _REGISTRY.names()]


def get(name: str) -> Statistic:
    """Return the record of a statistic; raise UsageError if there is none of this name."""
    statistic: Statistic = _REGISTRY.get(name.replace("_", "-"))
    return statistic
