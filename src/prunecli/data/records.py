"""Text in records: which column of a source holds it, and what happens to bad ones.

A bad line is a line of JSON, a row of a table or a .txt file without readable text. An empty string
is text.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.errors import InputError
from prunecli.interruption import safe_point
from prunecli.report import SILENT, Report

DEFAULT = "text"


STRING, BYTES = "string", "bytes"  # what a column of text holds


KINDS: dict[type, str] = {
    **{str: STRING, bytes: BYTES, bool: "true or false", int: "a number", float: "a number"},
    **{list: "a list", dict: "an object", type(None): "null"},
}


@dataclass
class Reading:
    """How documents are read, and how many bad lines were skipped so far.

    Attributes:
        column: the one that holds the text; None means 'text', or else the only one of strings.
        skip_bad: how many bad lines may be skipped. skipped: how many were.
    """

    column: str | None = None
    skip_bad: int = 0
    report: Report = SILENT
    skipped: int = 0
    _first: str = ""
    _reported: set[str] = field(default_factory=set)

    def bad(self, what: str, remedy: str = "") -> None:
        """Skip a bad line; raise InputError if it is one too many."""
        if self.skipped >= self.skip_bad:
            if self.skip_bad:
                raise InputError(f"{what} (bad line {self.skipped + 1}, --skip-bad {self.skipped})")
            raise InputError(what, remedy or "fix it, or skip it with --skip-bad N")
        self.skipped += 1
        self._first = self._first or what
        self.report.debug(f"skipped: {what}")

    def guessed(self, column: str, where: str) -> None:
        """Report, once for each column, that text is read from one of another name."""
        if column not in self._reported:
            self._reported.add(column)
            self.report.info(f"{where} has no column '{DEFAULT}': reading '{column}'")

    def tell(self, report: Report) -> None:
        """Report how many bad lines were skipped, if any."""
        if self.skipped:
            report.info(f"{self.skipped} bad lines skipped, the first: {self._first}")


def choose(kinds: Mapping[str, str], asked: str | None, where: str) -> str:
    """Return which column of these kinds to read; raise InputError if there is none."""
    column = asked or (DEFAULT if DEFAULT in kinds else None)
    if column is None:
        strings = [name for name, kind in kinds.items() if kind == STRING]
        if len(strings) != 1:
            raise InputError(
                f"{where} has no column '{DEFAULT}' and {len(strings)} columns of strings: "
                f"it has {', '.join(kinds) or 'nothing'}",
                "name the one to read: --text-column NAME" if strings else "",
            )
        return strings[0]
    if column not in kinds:
        raise InputError(f"{where} has no column '{column}': {', '.join(kinds) or 'it is empty'}")
    if kinds[column] not in (STRING, BYTES):
        raise InputError(
            f"{where} has no string in '{column}': it holds {kinds[column]}",
            "" if asked else "name another column with --text-column",
        )
    return column


def texts(rows: Iterable[tuple[str, dict[str, Any]]], reading: Reading) -> Iterator[str]:
    """Yield the text of each (where, row) of a source that does not declare its columns.

    Where the column had to be guessed, a later row with strings in another one raises InputError.
    """
    column = reading.column
    for where, row in rows:
        if column is None and DEFAULT in row:
            column = DEFAULT
        if column not in (None, reading.column, DEFAULT):
            _no_other(row, column, where)
        try:
            found = column if column in row else choose(_kinds(row), column, where)
            text = decoded(row[found], found, where)
        except InputError as error:
            reading.bad(error.what, error.remedy)
            continue
        if column is None:
            reading.guessed(found, where)
            column = found
        yield text


def _kinds(row: dict[str, Any]) -> dict[str, str]:
    return {name: kind_of(value) for name, value in row.items()}


def _no_other(row: dict[str, Any], column: str, where: str) -> None:
    """Raise InputError if a row has strings in another column than the one that was guessed."""
    for name, value in row.items():
        if name != column and isinstance(value, str):
            raise InputError(
                f"{where} has strings in '{name}', those before it in '{column}' alone",
                "name the column to read: --text-column NAME",
            )


def column_texts(values: Iterable[tuple[str, Any]], column: str, reading: Reading) -> Iterator[str]:
    """Yield the text of each (where, value) of one column."""
    for where, value in values:
        try:
            text = decoded(value, column, where)
        except InputError as error:
            reading.bad(error.what, error.remedy)
            continue
        yield text


def decoded(value: Any, column: str, where: str) -> str:
    """Return the text that a value is; raise InputError, naming `where`, if it is none."""
    safe_point()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} has no UTF-8 in '{column}': {decode_error(error)}") from None
    if not isinstance(value, str):
        raise InputError(f"{where} has no string in '{column}': it holds {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """Return the kind of a value, in the words of JSON."""
    return KINDS.get(type(value), "another type")


def decode_error(error: UnicodeDecodeError) -> str:
    """Return what is wrong with bytes that are not UTF-8."""
    return f"{error.reason} at byte {error.start}"


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
