"""Text in local files: .txt (one document each), .jsonl and .parquet (one document a row).

A folder's files are read in the order of their names, each only when its turn comes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli.errors import InputError

SUFFIXES = (".jsonl", ".parquet", ".txt")


def documents(path: Path) -> Iterator[str]:
    """Return the documents of an existing file or folder.

    Raises InputError at once if there is nothing to read, and while reading if a file is damaged.
    """
    return (document for file in _files(path) for document in _read(file))


def size(path: Path) -> int:
    """Return the bytes of all files that `documents` would read."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file()]
        files.sort(key=lambda file: file.relative_to(path).as_posix())
        if not files:
            raise InputError(f"'{path}' has no text: expected {', '.join(SUFFIXES)} files in it")
    elif path.suffix not in SUFFIXES:
        raise InputError(
            f"cannot read '{path}' as text: expected {', '.join(SUFFIXES)}",
            "or FILE.safetensors:NAME for token ids",
        )
    return files


def _read(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".txt":
            yield path.read_text("utf-8")
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path)
        else:
            yield from _read_parquet(path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}", "convert it"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None


def _read_jsonl(path: Path) -> Iterator[str]:
    column = None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"line {number} of '{path}'"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{place} is no JSON object", 'expected {"text": "..."}')
            column = column or text_column(string_columns(row), place)
            yield text_of(row, column, place)


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    def is_text(kind: Any) -> bool:
        return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))

    try:
        with parquet.ParquetFile(path) as file:
            columns = {field.name: is_text(field.type) for field in file.schema_arrow}
            column = text_column(columns, f"'{path}'")
            for batch in file.iter_batches(columns=[column], batch_size=1000):
                for row in batch.to_pylist():
                    yield text_of(row, column, f"a row of '{path}'")
    except pyarrow.ArrowException as error:
        raise InputError(f"'{path}' is not a valid parquet file: {first_line(error)}") from None


def string_columns(row: dict[str, Any]) -> dict[str, bool]:
    """Return, for each column of a row, whether it holds a string."""
    return {name: isinstance(value, str) for name, value in row.items()}


def text_column(is_text: dict[str, bool], place: str) -> str:
    """Return the column to read, 'text' or the only one of strings; raise InputError if unclear."""
    if is_text.get("text"):
        return "text"
    strings = [name for name, holds in is_text.items() if holds]
    if len(strings) != 1:
        raise InputError(
            f"{place} has no column 'text' and {len(strings)} columns of strings: "
            f"it has {', '.join(is_text) or 'nothing'}",
            "rename the one to read to 'text'",
        )
    return strings[0]


def text_of(row: dict[str, Any], column: str, place: str) -> str:
    """Return the text in a row; raise InputError, naming `place`, if there is none."""
    value = row.get(column)
    if not isinstance(value, str):
        raise InputError(f"{place} has no string in '{column}'")
    return value


def first_line(error: Exception) -> str:
    """Return what an error of some library says, cut to a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
