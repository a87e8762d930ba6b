"""JSON that comes from strangers: bounded, and only what JSON is."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from prunecli.errors import InputError

MAX_BYTES = 100_000_000


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises InputError, of one line, for everything else: no JSON, NaN and infinity (which are none),
    numbers too long to be read, nesting without end. FileNotFoundError stays what it is.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"'{path}' has more than {MAX_BYTES / 1e6:g} MB, too many for JSON")
        record = json.loads(path.read_text("utf-8"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise
    except RecursionError:
        raise InputError(f"'{path}' is not readable as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"'{path}' is not readable as JSON: {why}") from None
    if not isinstance(record, dict):
        raise InputError(f"'{path}' is not a JSON object")
    return record


def told(value: Any) -> str:
    """Return a value as JSON writes it, cut short: what a message shows of a stranger's file."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)
