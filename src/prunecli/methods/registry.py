"""All methods by name (`wanda_sp.py` is `wanda-sp`)."""

from pathlib import Path

from prunecli.methods._base import Method
from prunecli.registry import Registry

_REGISTRY = Registry("prunecli.methods", str(Path(__file__).parent), "method", "METHOD")


names = _REGISTRY.names


def get(name: str) -> Method:
    """Return the method called `name`; raise UsageError with a suggestion otherwise."""
    method: Method = _REGISTRY.get(name)
    return method
