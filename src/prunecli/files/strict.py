"""JSON from untrusted files: bounded, and strictly JSON."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import regular

MAX_DIGITS = 40  # three such numbers can be multiplied, and still be floats
MAX_DEPTH = 100
MAX_VALUES = 5_000_000  # of some 60 bytes each


# the beginning of what Git leaves in place of a large file that was not fetched
LFS = "version https://git-lfs.github.com/spec/"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise what `read_value` does, InputError for no object."""
    record = read_value(path)
    if not isinstance(record, dict):
        raise InputError(f"'{path}' is not a JSON object")
    return record


def read_value(path: Path) -> Any:
    """Return the JSON value in a regular file.

    Raises InputError, of one line, for everything that `parsed` refuses and for files that are no
    JSON or too large; FileNotFoundError for a missing file.
    """
    content = regular.content(path)
    try:
        text = content.decode()
        refuse_pointer(path, text)
        return parsed(text)
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise InputError(f"'{path}' is not readable as JSON: {why}") from None


def parsed(content: str | bytes, finite: bool = True) -> Any:
    """Return the value of a JSON text.

    Raises ValueError, of one line, for no JSON and for what can only do harm: NaN and infinity
    (which JSON has not), halves of surrogate pairs (which UTF-8 has not), a name twice in an object
    (another library may take the other one), too many digits or values, too deep nesting.
    `finite=False` is for numbers that were computed, which may be infinite.
    """
    text = content.decode() if isinstance(content, bytes) else content
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    number = _finite if finite else float
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=number,
            parse_constant=number,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError for a value that holds others in too many levels, or itself."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        nested = (v.values() if isinstance(v, dict) else v for v in level)
        # those that many share are looked at once
        level = list({id(v): v for vs in nested for v in vs if isinstance(v, dict | list)}.values())
        if not level:
            return
        if len(level) > MAX_VALUES:
            break
    raise ValueError("it is nested too deeply")


def refuse_pointer(path: Path, start: str) -> None:
    """Raise InputError if a file, which begins with `start`, is only a pointer of Git LFS."""
    if start.startswith(LFS):
        raise InputError(f"'{path}' is a pointer of Git LFS, not the file", "run git lfs pull")


def told(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters, to show it in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a name occurs twice in one of its objects")
    return record


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number in it has more than {MAX_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)
