"""Dynamic batch loading: batches drawn more from where the loss has further to go (2310.06694).

    w <- softmax(ln w + (loss - reference)),  then  w <- (1 - c) w + c / D,  c = 1e-4

every so many steps, over D domains. As the official code and unlike the paper's text, a loss below
its reference lowers a weight. Draws are a function of seed, step and weights.
"""

import torch
from torch import Tensor

SMOOTHING = 1e-4


class Mixture:
    """An order of rows over domains that lie one after the other, `sizes` rows each."""

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.weights = torch.full((len(sizes),), 1 / len(sizes), dtype=torch.float64)

    @property
    def parts(self) -> list[slice]:
        """Where the rows of each domain lie."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Return what must be saved between two steps; a state is loaded into it in place."""
        return {"weights": self.weights}

    def batch(self, step: int, size: int, part: slice) -> list[int]:
        """Return the rows of `part` of a step's batch: domains by weight, rows evenly."""
        draw = torch.Generator().manual_seed(((self.seed << 33) + step) % (1 << 63))
        domains = torch.multinomial(self.weights, size, replacement=True, generator=draw)
        places = torch.rand(size, generator=draw, dtype=torch.float64)
        starts = [place.start for place in self.parts]
        return [
            starts[domain] + int(place * self.sizes[domain])
            for domain, place in zip(domains.tolist(), places.tolist(), strict=True)
        ][part]

    def update(self, losses: Tensor, reference: Tensor) -> None:
        """Take in the losses [D] of all domains, in nats per token."""
        weights = (self.weights.log() + losses - reference).softmax(0)
        weights = (1 - SMOOTHING) * weights + SMOOTHING / len(weights)
        self.weights.copy_(weights / weights.sum())
