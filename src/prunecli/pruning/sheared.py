"""Sheared LLaMA: masks learned together with the weights under a constraint (arXiv 2310.06694).

    min over weights and masks, max over multipliers:
    CE + sum_axes mean_layers [ m1 (s - t) + m2 (s - t)^2 ]                     (eq. 2, 3)

s is the expected share of zero gates of an axis (a vector over the layers for KV groups and FFN
channels), t its target, which rises from 0 over the first fifth of the steps. Axes whose size is
to stay have no mask. Gates (gates.py) are drawn once per step; multipliers, two per axis, go up by
the same AdamW. A unit of the heads is a KV group. Otherwise as the official code, except:

- The embedding is gated in every forward. The official code folds its gates in, but does not gate
  it while it learns, so that what is cut is not what was trained.           (--compat official)
- The output head is not multiplied by the hidden gates when they are folded in: no masked forward
  does that, the official one neither.                                       (--compat official)
- Masks and multipliers stand outside the clipping of gradients.             (--compat official)
- Learning rates are those of schedule.py, one step ahead of composer's.     (--compat official)
- Gates are drawn once per step, by seed and step alone; the official code draws them on every
  process for every micro-batch.
- log alpha is held within its limits once per step. The official code does so in every forward,
  which under FSDP, as in its published runs, reaches a gathered copy alone: there log alpha goes
  on beyond the limits, and needs the longer to come back.
- Units at the same limit are ranked by how far the last step went beyond it (gates.settled); the
  official code leaves it to topk. Those are many where the target puts more units at the lower
  limit than go, but their gates are at 0.004.
- Gates of heads and FFN channels are folded into the columns of o and down, which read them; the
  official code folds them into the rows of v and up. The function is the same.
- An axis whose size stays has no gates; there they would end at 0.996.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.model.arch import Arch
from prunecli.model.stock import LogitSoftcap
from prunecli.pruning import gates
from prunecli.pruning.sizes import Sizes
from prunecli.training.objective import Objective, whole
from prunecli.training.schedule import warm_steps

MASK_WARMUP = 0.2


MEAN, DEVIATION = 5.0, 0.01  # of log alpha at the start


class HardConcreteMasks(nn.Module):
    """log alpha of every axis that shrinks, and two multipliers each; all float32."""

    def __init__(self, arch: Arch, sizes: Sizes, seed: int) -> None:
        super().__init__()
        self.keep = {
            axis: getattr(sizes, axis)
            for axis in ("layers", "hidden", "kv_heads", "ffn")
            if getattr(sizes, axis) < getattr(arch, axis)
        }
        self.log_alpha, self.multipliers = nn.ParameterDict(), nn.ParameterDict()
        self.target: dict[str, float] = {}
        self.seed = seed
        draw = torch.Generator().manual_seed(seed)
        for axis, keep in self.keep.items():
            size = getattr(arch, axis)
            shape = (size,) if axis in ("layers", "hidden") else (arch.layers, size)
            start = MEAN + DEVIATION * torch.randn(shape, generator=draw)
            self.log_alpha[axis] = nn.Parameter(start)
            self.multipliers[axis] = nn.Parameter(torch.zeros(2))
            self.target[axis] = 1 - keep / size

    @torch.no_grad()
    def uniform(self, step: int) -> dict[str, Tensor]:
        """Return the random numbers of a step."""
        draw = torch.Generator().manual_seed(((self.seed << 32) + step) % (1 << 63))
        low, high = gates.EPSILON, 1 - gates.EPSILON
        return {
            axis: torch.rand(alpha.shape, generator=draw).mul(high - low).add(low).to(alpha.device)
            for axis, alpha in self.log_alpha.items()
        }

    def forward(
        self, uniform: Mapping[str, Tensor], share: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return gates drawn by these numbers, and the constraint at this share of the targets."""
        values = {
            axis: gates.sample(alpha, uniform[axis]) for axis, alpha in self.log_alpha.items()
        }
        return values, self.penalty(share)

    def penalty(self, share: float) -> Tensor:
        """Return the Lagrangian's constraint at this share of the targets."""
        total = torch.zeros((), device=next(self.parameters()).device)
        for axis, alpha in self.log_alpha.items():
            off = gates.chance_of_zero(alpha).mean(-1) - share * self.target[axis]
            first, second = self.multipliers[axis]
            total = total + (first * off + second * off**2).mean()
        return total

    def steady(self) -> dict[str, Tensor]:
        """Return gates without noise, as many at zero as are expected to be; all processes must."""
        found = {}
        for axis, alpha in self.log_alpha.items():
            now = whole(alpha.detach())
            zeros = gates.chance_of_zero(gates.limited(now)).sum(-1, keepdim=True).round()
            found[axis] = gates.settled(now, now.shape[-1] - zeros)
        return found

    def settled(self) -> dict[str, Tensor]:
        """Return the gates of the shape that was asked for, without noise; all processes must."""
        return {
            axis: gates.settled(whole(alpha.detach()), self.keep[axis]).cpu()
            for axis, alpha in self.log_alpha.items()
        }

    def figures(self) -> dict[str, Any]:
        """Return how near the constraint is, and its multipliers; all processes must."""
        return {
            "expected_sparsity": {
                axis: float(gates.chance_of_zero(gates.limited(whole(alpha.detach()))).mean())
                for axis, alpha in self.log_alpha.items()
            },
            "target_sparsity": self.target,
            "multipliers": {
                axis: whole(two.detach()).tolist() for axis, two in self.multipliers.items()
            },
        }


class ShearedObjective(Objective):
    """A model with gates: its loss, and the constraint on its shape."""

    def __init__(
        self,
        model: nn.Module,
        arch: Arch,
        masks: HardConcreteMasks,
        dtype: torch.dtype,
        mask_share: float,
        official: bool = False,
    ) -> None:
        super().__init__(model, None, dtype, 0.0, 1.0, (LogitSoftcap.of(arch), LogitSoftcap()))
        self.masks, self.mask_share, self.official = masks, mask_share, official
        self.values: dict[str, Tensor] = {}
        self._uniform: dict[str, Tensor] = {}
        self._share = 0.0
        self._handles = gates.attach(model, arch, lambda: self.values, embedding=not official)

    def release(self) -> None:
        """Take the gates off the model, which holds on to this otherwise, as this to the model."""
        for handle in self._handles:
            handle.remove()

    @property
    def trained(self) -> nn.Module:
        """Gates, and the weights unless they are frozen."""
        parts: dict[str, nn.Module] = {"masks": self.masks}
        if any(weight.requires_grad for weight in self.model.parameters()):
            parts["model"] = self.model
        return nn.ModuleDict(parts)

    @property
    def beside(self) -> list[nn.Module]:
        """The gates."""
        return [self.masks]

    @property
    def clipped(self) -> list[nn.Parameter]:
        """The weights; all that is trained in the official code."""
        return [*super().clipped, *(self.masks.parameters() if self.official else ())]

    def groups(self) -> list[dict[str, Any]]:
        """Return weights (unless they are frozen), log alpha, and multipliers that go up."""
        masks = self.masks
        own = {"share": self.mask_share, "weight_decay": 0.0}
        return [
            *(group for group in super().groups() if group["params"]),
            {"params": [*masks.log_alpha.values()], **own},
            {"params": [*masks.multipliers.values()], "maximize": True, **own},
        ]

    @torch.no_grad()
    def begin(self, step: int, steps: int) -> None:
        """Draw this step's random numbers; hold log alpha within its limits."""
        self._share = min(1.0, step / max(1, warm_steps(MASK_WARMUP, steps)))
        self._uniform = self.masks.uniform(step)
        for alpha in self.masks.log_alpha.values():
            alpha.clamp_(-gates.LIMIT, gates.LIMIT)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums over the tokens of ids [B, T]: loss with constraint, CE, zero.

        In evaluation gates are steady, and there is no constraint.
        """
        if not self.model.training:
            self.values = self.masks.steady()
            return super().forward(ids)
        self.values, penalty = self.masks(self._uniform, self._share)
        total, ce, none = super().forward(ids)
        return total + penalty * (ids.shape[0] * (ids.shape[1] - 1)), ce, none
