"""How library code talks: it never prints, it tells a `Report`, which here says nothing.

The command line replaces it by one that writes to stderr (cli/console.py).
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prunecli.interruption import safe_point

T = TypeVar("T")

# controls, lone surrogates and separators of lines; and the marks that turn the order of writing
INVISIBLE = ("Cc", "Cs", "Zl", "Zp")
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
REPLACEMENT = "\ufffd"
LONGEST = 500  # characters of a line about an error


def printable(text: str) -> str:
    """Return a text as one line that cannot steer a terminal, nor turn what is written after it.

    Names and sidecars may come from anybody. White space that breaks lines becomes a space,
    and every other control character U+FFFD.
    """
    if text.isprintable():
        # a bidirectional mark is not
        return text
    return "".join(map(_shown, text))


def cut(text: str) -> str:
    """Return a printable text of at most LONGEST characters."""
    text = printable(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _shown(sign: str) -> str:
    if sign in BIDI or unicodedata.category(sign) in INVISIBLE:
        return " " if sign.isspace() else REPLACEMENT
    return sign


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
        """Yield `items`, showing progress, rate and time left; `total` counts `unit`s.

        Before each is a safe point.
        """
        for item in items:
            safe_point()
            yield item

    @contextmanager
    def reading(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of `total` bytes were read, written or hashed, the rate and the time left.

        Yields what is to be called with each number of bytes that are done, which is a safe point.
        """
        yield lambda count: safe_point()


SILENT = Report()
