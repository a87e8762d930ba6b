"""Which rows a step reads: a function of the seed and the step alone, so nothing has to be saved.

Each epoch is a permutation of all rows, the last one of as many of the first rows as are still
needed. So the rows trained on, as a multiset, depend on the numbers of rows and steps only, never
on the seed: two runs with different orders are still token-matched.
"""

from collections.abc import Sequence
from typing import Protocol

import torch


class RowSource(Protocol):
    """Rows of equal length, numbered from `start` on, that a loop reads."""

    @property
    def start(self) -> int:
        """The number of the first row."""

    @property
    def seq_len(self) -> int:
        """Tokens per row."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """Return rows by their numbers: int64 [rows, length]."""


def shuffled(size: int, seed: int, epoch: int, domain: int = 0) -> torch.Tensor:
    """Return the numbers below `size` [size], permuted by the other arguments."""
    # seeds of neighbouring epochs must not meet those of neighbouring seeds
    number = ((domain << 52) + (seed << 20) + epoch) % (1 << 63)
    return torch.randperm(size, generator=torch.Generator().manual_seed(number))


class RowSampler:
    """The order in which `needed` rows are read, in several epochs if there are fewer."""

    def __init__(self, rows: RowSource, needed: int, seed: int) -> None:
        self.rows, self.needed, self.seed = rows, needed, seed
        self._epoch: tuple[int, torch.Tensor] | None = None

    def row_at(self, position: int) -> int:
        """Return the number of the row at a position of the order."""
        epoch, inside = divmod(position, len(self.rows))
        if self._epoch is None or self._epoch[0] != epoch:
            size = min(len(self.rows), self.needed - epoch * len(self.rows))
            self._epoch = epoch, shuffled(size, self.seed, epoch)
        return self.rows.start + int(self._epoch[1][inside])

    def state(self) -> dict[str, torch.Tensor]:
        """Return what must be saved between two steps: nothing."""
        return {}

    def check(self) -> None:
        """Check a state that was loaded: there is none."""

    def batch(self, step: int, size: int, part: slice) -> list[int]:
        """Return the rows of `part` of a step's batch of `size`."""
        positions = range(step * size, (step + 1) * size)[part]
        return [self.row_at(position) for position in positions]
