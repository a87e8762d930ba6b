"""All families by name, and by the `model_type` of a config.json, those of others among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.model.families._base import Family
from prunecli.registry import Registry

GROUP = "prunecli.families"
_REGISTRY = Registry(
    "prunecli.model.families", str(Path(__file__).parent), "family", "FAMILY", GROUP, Family
)


names = _REGISTRY.names
source = _REGISTRY.source
trying = _REGISTRY.trying


def get(name: str) -> Family:
    """Return the family called `name`; raise UsageError with a suggestion otherwise."""
    family: Family = _REGISTRY.get(name)
    return family


def of_model_type(model_type: str) -> Family:
    """Return the family of a config.json's `model_type`; raise InputError if none knows it."""
    name = _by_model_type().get(model_type)
    if name is None:
        raise unknown(model_type)
    return get(name)


def of_config(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json; raise InputError if none knows its `model_type`."""
    family = of_model_type(config["model_type"])
    variants = (get(name) for name in family.variants)
    return next((one for one in variants if one.when is not None and one.when(config)), family)


def knows(model_type: str) -> bool:
    """Return whether a family reads a `model_type`."""
    return model_type in _by_model_type()


def unknown(model_type: str, beside: str = "") -> InputError:
    """Return the error for a `model_type` that no family reads, and what else is known of it."""
    return InputError(
        f"unknown family: config.json has model_type '{model_type}'"
        f"{beside or suggest(model_type, sorted(_by_model_type()))}"
    )


def _by_model_type() -> dict[str, str]:
    """Return the family of each `model_type`; raise UsageError where two packages read one."""
    found: dict[str, str] = {}
    for name in names():
        for kind in get(name).model_types if get(name).when is None else ():
            if kind in found:
                raise UsageError(
                    f"'{found[kind]}' of '{source(found[kind])}' and '{name}' of '{source(name)}' "
                    f"both read the model_type '{kind}'",
                    "uninstall one of the packages",
                )
            found[kind] = name
    return found
