"""The loop: AdamW, accumulation, clipping, a schedule, masks; one process or many.

A step is a function of weights, moments and the step's number: rows, learning rate and the seed of
any dropout follow from the number. So whatever is saved between two steps resumes exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import nn

from prunecli.settings import Training
from prunecli.training import schedule
from prunecli.training.distributed import Ranks
from prunecli.training.domains import DomainMixture
from prunecli.training.fixed_masks import Masks
from prunecli.training.objective import Objective, whole
from prunecli.training.order import RowSampler, RowSource


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured: the mean cross-entropy of its batch before the update, in nats.

    `kl` is the mean divergence from the teacher, None without one; `grad_norm` is before clipping.
    """

    loss: float
    kl: float | None
    grad_norm: float
    lr: float
    finite: bool
    stop: bool


class Loop:
    """Trains an objective on rows.

    `steps`, `batch_size` and `lr` are those of this loop, whatever `settings` ask for: a sweep has
    loops of its own. `micro` is how many sequences go through a process at once. `order` takes the
    place of passes over all rows, `rate` that of the usual schedule.
    """

    def __init__(
        self,
        objective: Objective,
        rows: RowSource,
        settings: Training,
        masks: Masks,
        ranks: Ranks,
        *,
        steps: int,
        batch_size: int,
        lr: float,
        micro: int,
        order: RowSampler | DomainMixture | None = None,
        rate: Callable[[int, int, float, float, float], float] = schedule.rate,
    ) -> None:
        self.objective, self.settings, self.masks, self.ranks = objective, settings, masks, ranks
        self.rows, self.micro, self.rate = rows, micro, rate
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.order = order or RowSampler(rows, steps * batch_size, settings.seed)
        self.optimizer = torch.optim.AdamW(
            objective.groups(),
            lr=lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.own = batch_size // ranks.world
        self.predicted = batch_size * (rows.seq_len - 1)

    def step(self, step: int, stop: bool = False) -> StepMetrics:
        """Take one step; with a loss or gradient that is no number, leave everything as it was.

        `stop` is this process's wish to stop; the result's is that of any.
        """
        settings, ranks = self.settings, self.ranks
        lr = self.rate(step, self.steps, self.lr, settings.warmup, settings.floor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.objective.begin(step, self.steps)
        first = ranks.rank * self.own
        batch = self.rows.read(
            self.order.batch(step, self.batch_size, slice(first, first + self.own))
        )
        sums = torch.zeros(3, device=ranks.device)
        with torch.random.fork_rng(_drawing(ranks.device), device_type=ranks.device.type):
            place = step * ranks.world + ranks.rank
            torch.manual_seed(((settings.seed << 40) + place) % (1 << 63))
            pieces = torch.split(batch, self.micro)
            for number, piece in enumerate(pieces):
                if ranks.mesh is not None:
                    last = number == len(pieces) - 1
                    self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]
                ids = piece.to(ranks.device, non_blocking=True)
                with self._autocast():
                    total, *parts = self.objective(ids)
                # FSDP takes the mean over processes, the loss is a mean over all tokens
                (total * (ranks.world / self.predicted)).backward()
                sums[:2] += torch.stack(parts)
        sums[2] = float(stop)
        sums = ranks.sum(sums)
        self.masks.on_gradients()
        norms = [whole(nn.utils.clip_grad_norm_(self.objective.clipped, settings.clip))]
        beside = [p for part in self.objective.beside for p in part.parameters()]
        if beside:
            # clipped or not, they must be numbers too
            norms.append(whole(nn.utils.clip_grad_norm_(beside, inf)))
        # the only wait for the device in a step
        told = torch.cat([sums, torch.stack(norms).to(sums)]).tolist()
        ce, kl, stopped, norm, *_ = told
        finite = all(map(isfinite, told))
        if finite:
            self.optimizer.step()
            self.masks.on_weights()
        self.optimizer.zero_grad(set_to_none=True)
        taught = self.objective.teacher is not None
        mean_kl = kl / self.predicted if taught else None
        return StepMetrics(ce / self.predicted, mean_kl, norm, lr, finite, stopped > 0)

    def _autocast(self) -> torch.autocast:
        alone = self.ranks.mesh is None
        dtype = self.objective.dtype
        return torch.autocast(
            self.ranks.device.type, dtype, enabled=alone and dtype != torch.float32
        )

    @torch.no_grad()
    def evaluate(self, ids: torch.Tensor) -> float:
        """Return the mean loss in nats over rows of ids [N, T], the same on every process."""
        model, ranks = self.objective, self.ranks
        model.model.eval()
        share = torch.zeros(1, dtype=torch.float64, device=ranks.device)
        # every process takes part in every forward: short shares are filled up with rows that
        # count nothing
        for start in range(0, len(ids), self.micro * ranks.world):
            mine = ids[start : start + self.micro * ranks.world][ranks.rank :: ranks.world]
            rows = mine if len(mine) else ids[:1]
            with self._autocast():
                _, ce, _ = model(rows.to(ranks.device).long())
            if len(mine):
                share += ce.double()
        model.model.train()
        if ranks.mesh is not None:
            # a forward without a backward leaves the root's weights gathered, in the compute type
            self.objective.reshard()  # type: ignore[operator]
        return float(ranks.sum(share)) / (len(ids) * (ids.shape[1] - 1))


def _drawing(device: torch.device) -> list[int]:
    """Return the devices that draw random numbers beside the CPU."""
    return [] if device.type == "cpu" else [device.index or 0]
