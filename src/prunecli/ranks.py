"""The processes of one run: one, or those that `torchrun` started, which divide its rows.

What a run makes of rows are sums over them. Each process sums over its own rows, and the sums are
added up once for each layer: all processes get the same bytes, so all decide alike. The first one
writes, and looks at OUT for all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from prunecli.errors import PruneError, UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Lost(PruneError):
    """Another process of the run has ended before its work was done (exit status 1)."""


@dataclass(frozen=True)
class Ranks:
    """This process among all: its rank, and their number.

    Of several, all must call the same methods in the same order. They raise Lost where another one
    has ended.
    """

    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    def share(self, count: int) -> slice:
        """Return which of `count` rows are this process's: as many as others have, or one more.

        Raises UsageError where some process would have none.
        """
        if count < self.world and not self.alone:
            raise UsageError(
                f"{count} rows of DATA cannot be divided among {self.world} processes",
                "start fewer, or give more rows",
            )
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def sum(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the sum over all processes, in the place of `values`."""
        if not self.alone:
            import torch.distributed as dist

            with _together():
                dist.all_reduce(values)
        return values

    def total(self, count: int) -> int:
        """Return the sum of a number over all processes."""
        import torch

        return count if self.alone else int(self.sum(torch.tensor(count)))

    def gathered(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Return the rows [n, ...] of all processes, those of the first one first."""
        if self.alone:
            return rows
        import torch

        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = len(rows)
        self.sum(counts)
        first = int(counts[: self.rank].sum())
        whole = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
        whole[first : first + len(rows)] = rows
        return self.sum(whole)  # of each row, and zeros

    def sent(self, values: "torch.Tensor", owner: int) -> "torch.Tensor":
        """Return the values that the process `owner` has, in the place of `values`."""
        if not self.alone:
            import torch.distributed as dist

            with _together():
                dist.broadcast(values, owner)
        return values

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, on all; the others make nothing."""
        if self.alone:
            return make()
        import torch
        import torch.distributed as dist

        made = [make() if self.is_main else None]
        with _together():
            dist.broadcast_object_list(made, 0, device=torch.device("cpu"))
        return made[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all processes."""
        if not self.alone:
            import torch.distributed as dist

            with _together():
                dist.barrier()


ALONE = Ranks(0, 1)


@contextmanager
def _together() -> Iterator[None]:
    """Tell what breaks a call that all processes make as Lost."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this run ended early", "see what it said") from error
