"""All collectors by name."""

from pathlib import Path

from prunecli.pruning.stats._base import Collector
from prunecli.registry import Registry

_REGISTRY = Registry("prunecli.pruning.stats", str(Path(__file__).parent), "statistic", "COLLECTOR")


def make(name: str) -> Collector:
    """Return a new collector of this kind."""
    collector: Collector = _REGISTRY.get(name.replace("_", "-"))()
    return collector
