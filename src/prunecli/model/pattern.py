"""The pattern of zeros that a sparse method makes."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import floor


@dataclass(frozen=True)
class SparsityPattern:
    """Where zeros may go: `keep` of every `group` inputs in a row, or `ratio` of all weights."""

    ratio: float
    keep: int = 0
    group: int = 0

    @classmethod
    def of_groups(cls, text: str) -> "SparsityPattern | None":
        """Return the pattern N:M with 0 < N < M, None for any other text."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
        if not match or not 0 < int(match[1]) < int(match[2]):
            return None
        keep, group = int(match[1]), int(match[2])
        return cls(1 - keep / group, keep, group)

    def of(self, weights: int) -> int:
        """Return floor(ratio * weights), the ratio taken as it is written: 0.29 of 100 are 29,
        where products of floating-point numbers give 28.
        """
        return floor(Fraction(str(self.ratio)) * weights)

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else "unstructured"
