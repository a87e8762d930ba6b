"""The training loop: AdamW, accumulation, clipping, schedule, masks; in one process or many.

A step is a function of weights, moments and the step's number: rows, learning rate and the seed of
any dropout follow from the number. So a state that is saved between two steps resumes exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import nn

from prunecli.errors import Stopped
from prunecli.interruption import safe_point
from prunecli.settings import Optimization, never
from prunecli.training.distributed import Ranks
from prunecli.training.domains import DomainMixture
from prunecli.training.fixed_masks import Masks
from prunecli.training.objective import Objective, full_tensor
from prunecli.training.order import RowSampler, RowSource
from prunecli.training.schedule import Schedule, cosine_lr


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one step: the mean cross-entropy of its batch before the update, in nats.

    `kl` is the mean divergence from the teacher, None without one; `grad_norm` is before clipping.
    `stop` is whether any process wishes to stop.
    """

    loss: float
    kl: float | None
    grad_norm: float
    lr: float
    finite: bool
    stop: bool


@dataclass(frozen=True)
class LoopSettings:
    """How many steps a loop takes, of what, and at which learning rate.

    Attributes:
        batch_size: sequences per step, over all processes.
        micro_batch_size: sequences that go through a process at once.
        lr: the peak learning rate; `schedule` makes that of a step of it.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    lr: float
    optimization: Optimization
    schedule: Schedule = cosine_lr


class Loop:
    """Trains an objective on rows: in passes over all of them, or in the given `order`."""

    def __init__(
        self,
        objective: Objective,
        rows: RowSource,
        settings: LoopSettings,
        masks: Masks,
        ranks: Ranks,
        order: RowSampler | DomainMixture | None = None,
    ) -> None:
        self.objective, self.settings, self.masks, self.ranks = objective, settings, masks, ranks
        self.rows, self.steps, self.batch_size = rows, settings.steps, settings.batch_size
        optimization = settings.optimization
        needed = settings.steps * settings.batch_size
        self.order = order or RowSampler(rows, needed, optimization.seed)
        self.optimizer = torch.optim.AdamW(
            objective.parameter_groups(),
            lr=settings.lr,
            betas=(optimization.beta1, optimization.beta2),
            eps=optimization.eps,
            weight_decay=optimization.weight_decay,
            fused=True,
        )
        self.local_batch_size = settings.batch_size // ranks.world
        self.predicted_tokens = settings.batch_size * (rows.seq_len - 1)

    def step(self, step: int, stop: bool = False) -> StepMetrics:
        """Take one step; with a loss or gradient that is not finite, change nothing.

        `stop` is this process's wish to stop.
        """
        optimization = self.settings.optimization
        lr = self.settings.schedule(
            step, self.steps, self.settings.lr, optimization.warmup, optimization.floor
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.objective.on_step_begin(step, self.steps)
        sums = self.ranks.sum(torch.cat([self._backward(step), self._flag(stop)]))
        self.masks.mask_gradients()
        # the only wait for the device in a step
        measured = torch.cat([sums, self._clip_gradients().to(sums)]).tolist()
        ce, kl, stopped, norm, *_ = measured
        finite = all(map(isfinite, measured))
        if finite:
            self.optimizer.step()
            self.masks.mask_weights()
        self.optimizer.zero_grad(set_to_none=True)
        has_teacher = self.objective.teacher is not None
        mean_kl = kl / self.predicted_tokens if has_teacher else None
        return StepMetrics(ce / self.predicted_tokens, mean_kl, norm, lr, finite, stopped > 0)

    def _backward(self, step: int) -> torch.Tensor:
        """Accumulate the gradients of a step; return this process's summed CE and KL [2]."""
        ranks, first = self.ranks, self.ranks.rank * self.local_batch_size
        local = slice(first, first + self.local_batch_size)
        batch = self.rows.read(self.order.batch(step, self.batch_size, local))
        sums = torch.zeros(2, device=ranks.device)
        with torch.random.fork_rng(_rng_devices(ranks.device), device_type=ranks.device.type):
            own_step = step * ranks.world + ranks.rank
            torch.manual_seed(((self.settings.optimization.seed << 40) + own_step) % (1 << 63))
            micro_batches = torch.split(batch, self.settings.micro_batch_size)
            for number, micro_batch in enumerate(micro_batches):
                if ranks.mesh is not None:
                    last = number == len(micro_batches) - 1
                    self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]
                ids = micro_batch.to(ranks.device, non_blocking=True)
                with self._autocast():
                    total, *parts = self.objective(ids)
                # FSDP takes the mean over processes, the loss is a mean over all tokens
                (total * (ranks.world / self.predicted_tokens)).backward()
                sums += torch.stack(parts)
        return sums

    def _flag(self, stop: bool) -> torch.Tensor:
        return torch.full((1,), float(stop), device=self.ranks.device)

    def _clip_gradients(self) -> torch.Tensor:
        """Clip the gradients; return their norm before, and that of the auxiliary modules, if any.

        These may not be clipped, but must be finite too.
        """
        clip = self.settings.optimization.clip
        norms = [full_tensor(nn.utils.clip_grad_norm_(self.objective.clipped, clip))]
        auxiliary = [p for part in self.objective.auxiliary_modules for p in part.parameters()]
        if auxiliary:
            norms.append(full_tensor(nn.utils.clip_grad_norm_(auxiliary, inf)))
        return torch.stack(norms)

    def _autocast(self) -> torch.autocast:
        alone = self.ranks.mesh is None
        dtype = self.objective.dtype
        return torch.autocast(
            self.ranks.device.type, dtype, enabled=alone and dtype != torch.float32
        )

    @torch.no_grad()
    def evaluate(self, ids: torch.Tensor, stop: Callable[[], bool] = never) -> float:
        """Return the mean loss in nats over rows of ids [N, T], the same on every process.

        Raises Stopped, on every process, where one wishes to `stop`: it is asked at every batch.
        """
        model, ranks = self.objective, self.ranks
        model.model.eval()
        loss = torch.zeros(1, dtype=torch.float64, device=ranks.device)
        size = self.settings.micro_batch_size * ranks.world
        # every process takes part in every forward: one without rows of its own passes another row,
        # which does not count
        stopped = False
        for start in range(0, len(ids), size):
            safe_point()
            if stop is not never and (stopped := bool(ranks.sum(self._flag(stop())))):
                break
            mine = ids[start : start + size][ranks.rank :: ranks.world]
            rows = mine if len(mine) else ids[:1]
            with self._autocast():
                _, ce, _ = model(rows.to(ranks.device).long())
            if len(mine):
                loss += ce.double()
        model.model.train()
        if ranks.mesh is not None:
            # a forward without a backward leaves the root's weights gathered, in the compute type
            self.objective.reshard()  # type: ignore[operator]
        if stopped:
            raise Stopped("stopped in an evaluation", "rerun the same command to resume")
        return float(ranks.sum(loss)) / (len(ids) * (ids.shape[1] - 1))


def _rng_devices(device: torch.device) -> list[int]:
    """Return the devices with a random number generator of their own, beside the CPU."""
    return [] if device.type == "cpu" else [device.index or 0]
