"""Dynamic batch loading: more rows from domains whose loss is further from its reference.

Xia et al. 2023, arXiv 2310.06694, algorithm 1:

    w <- softmax(ln w + (loss - reference)),  then  w <- (1 - c) w + c / D,  c = 1e-4

every so many steps, over D domains. As in the official code and unlike the paper's text, a loss
below its reference lowers a weight. The rows of a domain are read in epochs, each in a shuffled
order of its own. A batch follows from seed, step, weights, and how many rows of each domain were
read before.
"""

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from prunecli.training.order import shuffled

SMOOTHING = 1e-4


class DomainMixture:
    """An order of rows over domains that follow one another, `sizes` rows each.

    The weights begin in proportion to `shares`, or to `sizes`.
    """

    def __init__(self, sizes: list[int], seed: int, shares: Sequence[float] | None = None) -> None:
        self.sizes, self.seed = sizes, seed
        natural = torch.tensor(shares or sizes, dtype=torch.float64)
        self.weights = natural / natural.sum()
        # rows read of each domain before step `at`, and in it
        self.before, self.within = (torch.zeros(len(sizes), dtype=torch.int64) for _ in range(2))
        self.at = torch.full((1,), -1)
        self._epochs: dict[int, tuple[int, Tensor]] = {}

    @property
    def parts(self) -> list[slice]:
        """The rows of each domain."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a state, into which one is loaded in place."""
        return {
            "weights": self.weights,
            "before": self.before,
            "within": self.within,
            "at": self.at,
        }

    def check(self) -> None:
        """Raise ValueError where what was loaded into the tensors of a state are no weights."""
        if not ((self.weights >= 0).all() and 0 < float(self.weights.sum()) < inf):
            raise ValueError(f"the domains have the weights {self.weights.tolist()}")

    def batch(self, step: int, size: int, part: slice) -> list[int]:
        """Return the rows of `part` of a step's batch: domains by weight, their rows in order.

        Called again for the last step, it returns the same rows.
        """
        draw = torch.Generator().manual_seed(((self.seed << 33) + step) % (1 << 63))
        domains = torch.multinomial(self.weights, size, replacement=True, generator=draw)
        if step != int(self.at):
            self.before += self.within
            self.at.fill_(step)
            self.within.copy_(domains.bincount(minlength=len(self.sizes)))
        positions, rows = self.before.tolist(), []
        for domain in domains.tolist():
            rows.append(self._row_at(domain, positions[domain]))
            positions[domain] += 1
        return rows[part]

    def _row_at(self, domain: int, position: int) -> int:
        """Return the number of the row at a position of the order of a domain."""
        size, start = self.sizes[domain], self.parts[domain].start
        epoch, inside = divmod(position, size)
        if self._epochs.get(domain, (-1,))[0] != epoch:
            self._epochs[domain] = epoch, shuffled(size, self.seed, epoch, domain)
        row: int = start + int(self._epochs[domain][1][inside])
        return row

    def update(self, losses: Tensor, reference: Tensor) -> None:
        """Update the weights from the losses [D] of all domains, in nats per token."""
        weights = (self.weights.log() + losses - reference).softmax(0)
        weights = (1 - SMOOTHING) * weights + SMOOTHING / len(weights)
        self.weights.copy_(weights / weights.sum())
