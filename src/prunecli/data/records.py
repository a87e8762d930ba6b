"""Text in records: which column of a source holds it, and what becomes of bad ones.

A bad line is a line of JSON, a row of a table or a .txt file without text that can be read. An
empty string is text.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.errors import InputError
from prunecli.report import SILENT, Report

DEFAULT = "text"


STRING, BYTES = "string", "bytes"  # what a column of text holds


KINDS: dict[type, str] = {
    **{str: STRING, bytes: BYTES, bool: "true or false", int: "a number", float: "a number"},
    **{list: "a list", dict: "an object", type(None): "null"},
}


@dataclass
class Reading:
    """How documents are read, and how many bad lines were passed over so far.

    Attributes:
        column: the one that holds the text; None means 'text', or else the only one of strings.
        skip_bad: how many bad lines may be passed over. skipped: how many were.
    """

    column: str | None = None
    skip_bad: int = 0
    report: Report = SILENT
    skipped: int = 0
    _first: str = ""
    _told: set[str] = field(default_factory=set)

    def bad(self, what: str, remedy: str = "") -> None:
        """Pass over a bad line; raise InputError if it is one too many."""
        if self.skipped >= self.skip_bad:
            if self.skip_bad:
                raise InputError(f"{what} (bad line {self.skipped + 1}, --skip-bad {self.skipped})")
            raise InputError(what, remedy or "mend it, or pass over it with --skip-bad N")
        self.skipped += 1
        self._first = self._first or what
        self.report.detail(f"skipped: {what}")

    def guessed(self, column: str, place: str) -> None:
        """Say, once for each column, that the text is taken from one that is not called so."""
        if column not in self._told:
            self._told.add(column)
            self.report.note(f"{place} has no column '{DEFAULT}': reading '{column}'")

    def tell(self, report: Report) -> None:
        """Say how many bad lines were passed over, if any."""
        if self.skipped:
            report.note(f"{self.skipped} bad lines skipped, the first: {self._first}")


def choose(kinds: Mapping[str, str], asked: str | None, place: str) -> str:
    """Return the column to read of those with these kinds; raise InputError where none can be."""
    column = asked or (DEFAULT if DEFAULT in kinds else None)
    if column is None:
        strings = [name for name, kind in kinds.items() if kind == STRING]
        if len(strings) != 1:
            raise InputError(
                f"{place} has no column '{DEFAULT}' and {len(strings)} columns of strings: "
                f"it has {', '.join(kinds) or 'nothing'}",
                "name the one to read: --text-column NAME" if strings else "",
            )
        return strings[0]
    if column not in kinds:
        raise InputError(f"{place} has no column '{column}': {', '.join(kinds) or 'it is empty'}")
    if kinds[column] not in (STRING, BYTES):
        raise InputError(
            f"{place} has no string in '{column}': it holds {kinds[column]}",
            "" if asked else "name another column with --text-column",
        )
    return column


def texts(rows: Iterable[tuple[str, dict[str, Any]]], reading: Reading) -> Iterator[str]:
    """Yield the text of each (place, row) of a source that does not declare its columns.

    Where the column had to be guessed, a later row with strings in another one raises InputError.
    """
    column = reading.column
    for place, row in rows:
        if column is None and DEFAULT in row:
            column = DEFAULT
        if column not in (None, reading.column, DEFAULT):
            _no_other(row, column, place)
        try:
            found = column if column in row else choose(_kinds(row), column, place)
            text = decoded(row[found], found, place)
        except InputError as error:
            reading.bad(error.what, error.remedy)
            continue
        if column is None:
            reading.guessed(found, place)
            column = found
        yield text


def _kinds(row: dict[str, Any]) -> dict[str, str]:
    return {name: kind_of(value) for name, value in row.items()}


def _no_other(row: dict[str, Any], column: str, place: str) -> None:
    """Raise InputError if a row has strings in another column than the one that was guessed."""
    for name, value in row.items():
        if name != column and isinstance(value, str):
            raise InputError(
                f"{place} has strings in '{name}', those before it in '{column}' alone",
                "name the column to read: --text-column NAME",
            )


def column_texts(values: Iterable[tuple[str, Any]], column: str, reading: Reading) -> Iterator[str]:
    """Yield the text of each (place, value) of one column."""
    for place, value in values:
        try:
            text = decoded(value, column, place)
        except InputError as error:
            reading.bad(error.what, error.remedy)
            continue
        yield text


def decoded(value: Any, column: str, place: str) -> str:
    """Return the text that a value is; raise InputError, naming `place`, if it is none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{place} has no UTF-8 in '{column}': {told(error)}") from None
    if not isinstance(value, str):
        raise InputError(f"{place} has no string in '{column}': it holds {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    return KINDS.get(type(value), "another type")


def told(error: UnicodeDecodeError) -> str:
    """Return what is wrong with bytes that are not UTF-8."""
    return f"{error.reason} at byte {error.start}"


def first_line(error: Exception) -> str:
    """Return what an error of some library says, cut to a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
