"""`Record`: a dataclass that refuses values of the wrong kind, whoever builds it.

The command line parses words into the right types; a Python caller can pass anything, and would
otherwise hear of it from deep inside, or find it written into a sidecar.
"""

import os
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from prunecli.errors import UsageError, suggest

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
SHOWN = 60  # characters of a value in a message


def limited(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field whose value, where it is not None, keeps to these limits."""
    limits = {"least": least, "most": most, "choices": choices}
    return field(default=default, metadata=limits)


class Record:
    """The base of records: fields have the kind of their annotation, and keep to their limits.

    A path can be given wherever text is expected. Raises UsageError.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for one in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, one.name), hints[one.name]
            if isinstance(value, os.PathLike) and not _fits(value, hint) and _fits("", hint):
                value = os.fspath(value)
                object.__setattr__(self, one.name, value)
            if not _fits(value, hint):
                shown = repr(value)[:SHOWN]
                raise UsageError(f"{one.name} is {shown}: expected {_expected(hint)}")
            kinds = [hint, *get_args(hint)]
            if type(value) is int and float in kinds and int not in kinds:
                value = as_float(one.name, value)
                object.__setattr__(self, one.name, value)
            if value is not None:
                _check_limits(one.name, value, **one.metadata)


def as_float(name: str, value: int) -> float:
    """Return the float that is recorded of a whole number: 64 and 64.0 are to have one id.

    Raises UsageError for one that is too large.
    """
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"{name} is larger than any number that is computed with") from None


@cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of the kind that an annotation names."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (int, float):
        numbers = (int, float) if origin is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    if origin is Callable:
        return callable(value)
    if not isinstance(value, origin) or (isinstance(value, str) and origin is not str):
        return False
    if inner and origin is not type and not hasattr(value, "keys"):
        return all(_fits(one, inner[0]) for one in value)
    return True


def _expected(hint: Any) -> str:
    """Return the kind that an annotation names, in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_expected(one) for one in get_args(hint))
    if hint is NoneType:
        return "None"
    name = getattr(get_origin(hint) or hint, "__name__", str(hint))
    inner = [_expected(one) for one in get_args(hint) if one is not Ellipsis]
    if name in ("tuple", "Sequence", "list") and inner:
        return f"a {name} of {inner[0]}"
    return WORDS.get(hint, f"a {name}")


def _check_limits(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> None:
    if choices and value not in choices:
        raise UsageError(f"{name}: unknown value '{value}'{suggest(str(value), list(choices))}")
    if least is not None and value < least:
        raise UsageError(f"{name} is {value}: expected {least:g} or more")
    if most is not None and value > most:
        raise UsageError(f"{name} is {value}: expected {most:g} or less")
