"""Dynamic batch loading: batches drawn more from where the loss has further to go (2310.06694).

    w <- softmax(ln w + (loss - reference)),  then  w <- (1 - c) w + c / D,  c = 1e-4

every so many steps, over D domains. As the official code and unlike the paper's text, a loss below
its reference lowers a weight. A domain's rows are read as a run without domains reads its own: each
once, in a shuffled order, then again in another. What is drawn follows from seed, step, weights,
and how many rows of each domain were read before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.training.order import shuffled

SMOOTHING = 1e-4


class DomainMixture:
    """An order of rows over domains that lie one after the other, `sizes` rows each.

    Domains begin with `shares` (any scale), or with those of all rows that they have.
    """

    def __init__(self, sizes: list[int], seed: int, shares: Sequence[float] | None = None) -> None:
        self.sizes, self.seed = sizes, seed
        natural = torch.tensor(shares or sizes, dtype=torch.float64)
        self.weights = natural / natural.sum()
        # rows read of each domain before step `at`, and in it
        self.before, self.within = (torch.zeros(len(sizes), dtype=torch.int64) for _ in range(2))
        self.at = torch.full((1,), -1)
        self._passes: dict[int, tuple[int, Tensor]] = {}

    @property
    def parts(self) -> list[slice]:
        """Where the rows of each domain lie."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Return what must be saved between two steps; a state is loaded into it in place."""
        return {
            "weights": self.weights,
            "before": self.before,
            "within": self.within,
            "at": self.at,
        }

    def batch(self, step: int, size: int, part: slice) -> list[int]:
        """Return the rows of `part` of a step's batch: domains by weight, their rows in order.

        Asked again for the last step, it returns the same.
        """
        draw = torch.Generator().manual_seed(((self.seed << 33) + step) % (1 << 63))
        domains = torch.multinomial(self.weights, size, replacement=True, generator=draw)
        if step != int(self.at):
            self.before += self.within
            self.at.fill_(step)
            self.within.copy_(domains.bincount(minlength=len(self.sizes)))
        places, found = self.before.tolist(), []
        for domain in domains.tolist():
            found.append(self._row(domain, places[domain]))
            places[domain] += 1
        return found[part]

    def _row(self, domain: int, place: int) -> int:
        """Return the row at `place` of the order of a domain."""
        size, start = self.sizes[domain], self.parts[domain].start
        number, inside = divmod(place, size)
        if self._passes.get(domain, (-1,))[0] != number:
            self._passes[domain] = number, shuffled(size, self.seed, number, domain)
        row: int = start + int(self._passes[domain][1][inside])
        return row

    def update(self, losses: Tensor, reference: Tensor) -> None:
        """Take in the losses [D] of all domains, in nats per token."""
        weights = (self.weights.log() + losses - reference).softmax(0)
        weights = (1 - SMOOTHING) * weights + SMOOTHING / len(weights)
        self.weights.copy_(weights / weights.sum())
