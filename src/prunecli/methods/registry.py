"""All methods by name (`wanda_sp.py` is `wanda-sp`), those of other packages among them."""

from pathlib import Path

from prunecli.methods._base import Method
from prunecli.registry import Registry

GROUP = "prunecli.methods"
_REGISTRY = Registry(
    "prunecli.methods", str(Path(__file__).parent), "method", "METHOD", GROUP, Method
)


names = _REGISTRY.names
own = _REGISTRY.own
ours = _REGISTRY.ours
source = _REGISTRY.source


def get(name: str) -> Method:
    """Return the method called `name`; raise UsageError with a suggestion otherwise."""
    method: Method = _REGISTRY.get(name)
    return method
