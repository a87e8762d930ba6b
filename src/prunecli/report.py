"""How library code talks: it never prints, it tells a `Report`, which here says nothing.

The command line replaces it by one that writes to stderr (cli/console.py).
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Report:
    """A silent listener; subclasses show what they are told.

    `interactive` says whether somebody sees progress; libraries with bars of their own ask it.
    """

    interactive = False

    def info(self, message: str) -> None:
        """Tell the user something that they should know (shown unless --quiet)."""

    def debug(self, message: str) -> None:
        """Tell the user something that only --verbose asks for."""

    def status(self, text: str) -> None:
        """Show `text` beside the progress under way; it is replaced by the next."""

    def progress(
        self, items: Iterable[T], what: str, total: int | None = None, unit: str = "it"
    ) -> Iterator[T]:
        """Yield `items`, showing progress, rate and time left; `total` counts `unit`s."""
        yield from items


SILENT = Report()
