"""Rows of one length from several sources, numbered as one set."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from prunecli.data.rows import Rows


@dataclass(frozen=True)
class WindowRows:
    """Token windows [N, T] as rows for the loop."""

    ids: Tensor
    start: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens per window."""
        return self.ids.shape[1]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return windows by number: int64 [rows, T]."""
        return self.ids[list(indices)].long()


class ConcatRows:
    """Sets of rows of one length, one after the other, numbered from 0."""

    start = 0

    def __init__(self, sets: Sequence[Rows | WindowRows]) -> None:
        self.sets, self.sizes = sets, [len(rows) for rows in sets]
        self._ends = list(accumulate(self.sizes))
        self.seq_len = sets[0].seq_len

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return rows by number: int64 [rows, T]."""
        rows = []
        for index in indices:
            which = bisect_right(self._ends, index)
            offset = index - (self._ends[which] - self.sizes[which])
            rows.append(self.sets[which].read([self.sets[which].start + offset]))
        return torch.cat(rows)

    def some(self, count: int) -> Tensor:
        """Return `count` rows spread evenly over all, or all."""
        step = max(1, len(self) // count)
        return self.read(range(0, len(self), step)[:count])
