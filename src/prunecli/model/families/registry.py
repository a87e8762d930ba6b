"""All families by name, and by the `model_type` of a config.json."""

from pathlib import Path

from prunecli.errors import InputError, suggest
from prunecli.model.families._base import Family
from prunecli.registry import Registry

_REGISTRY = Registry("prunecli.model.families", str(Path(__file__).parent), "family", "FAMILY")


names = _REGISTRY.names


def get(name: str) -> Family:
    """Return the family called `name`; raise UsageError with a suggestion otherwise."""
    family: Family = _REGISTRY.get(name)
    return family


def of_model_type(model_type: str) -> Family:
    """Return the family of a config.json's `model_type`; raise InputError if none knows it."""
    known = {kind: name for name in names() for kind in get(name).model_types}
    if model_type not in known:
        raise InputError(
            f"unknown family: config.json has model_type '{model_type}'"
            f"{suggest(model_type, sorted(known))}"
        )
    return get(known[model_type])
