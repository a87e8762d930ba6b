"""JSON from untrusted files: bounded, and strictly JSON."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from prunecli.errors import InputError

MAX_BYTES = 100_000_000
MAX_DIGITS = 300


# the beginning of what Git leaves in place of a large file that was not fetched
LFS = "version https://git-lfs.github.com/spec/"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises InputError, of one line, for everything else: no JSON, NaN and infinity (which JSON has
    not), too many digits, too deep nesting; FileNotFoundError for a missing file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"'{path}' has more than {MAX_BYTES / 1e6:g} MB, too much for JSON")
        text = path.read_text("utf-8")
        refuse_pointer(path, text)
        record = parsed(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"'{path}' is not readable as JSON: {why}") from None
    if not isinstance(record, dict):
        raise InputError(f"'{path}' is not a JSON object")
    return record


def parsed(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the value of a JSON text; `pairs` makes its objects. Raises ValueError."""
    try:
        return json.loads(
            text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def refuse_pointer(path: Path, start: str) -> None:
    """Raise InputError if a file, which begins with `start`, is only a pointer of Git LFS."""
    if start.startswith(LFS):
        raise InputError(f"'{path}' is a pointer of Git LFS, not the file", "run git lfs pull")


def told(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters, to show it in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number in it has more than {MAX_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)
