"""Sheared LLaMA: masks trained together with the weights under a constraint (arXiv 2310.06694).

    min over weights and masks, max over multipliers:
    CE + sum_axes mean_layers [ m1 (s - t) + m2 (s - t)^2 ]                     (eq. 2, 3)

s is the expected fraction of zero masks of an axis (a vector over the layers for KV groups and FFN
channels), t its target, which rises from 0 over the first fifth of the steps. Axes that keep their
size have no masks. Masks (gates.py) are sampled once per step; multipliers, two per axis, ascend by
the same AdamW. A unit of the heads is a KV group. Otherwise as the official code, except:

- The embedding is masked in every forward. The official code merges its masks in, but does not
  mask it in training, so that the pruned model is not what was trained.     (--compat official)
- The output head is not multiplied by the hidden masks when they are merged in: no masked forward
  does that, not even the official one.                                      (--compat official)
- The gradients of masks and multipliers are not clipped.                    (--compat official)
- Learning rates are those of schedule.py, one step ahead of composer's.     (--compat official)
- Masks are sampled once per step, by seed and step alone; the official code samples them on every
  process for every micro-batch.
- log alpha is clamped to its limits once per step. The official code does so in every forward,
  which under FSDP, as in its published runs, reaches only a gathered copy: there log alpha moves
  beyond the limits, and takes longer to return.
- Units at the same limit are ranked by how far the last step moved beyond it (gates.final_masks);
  the official code leaves it to topk. Those are many where the target puts more units at the lower
  limit than are removed, but their masks are at 0.004.
- Masks of heads and FFN channels are merged into the columns of o and down, which read them; the
  official code merges them into the rows of v and up. The function is the same.
- An axis that keeps its size has no masks; there they would end at 0.996.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.model.arch import Arch
from prunecli.model.stock import LogitSoftcap
from prunecli.pruning import gates
from prunecli.pruning.sizes import Sizes
from prunecli.training.objective import Objective, full_tensor
from prunecli.training.schedule import warmup_steps

MASK_WARMUP = 0.2  # fraction of the steps over which the targets rise
MEAN, DEVIATION = 5.0, 0.01  # of log alpha at the start


class HardConcreteMasks(nn.Module):
    """log alpha of every axis that shrinks, and two multipliers per axis; all float32.

    `keep` has the sizes that these axes are pruned to.
    """

    def __init__(self, arch: Arch, sizes: Sizes, seed: int) -> None:
        super().__init__()
        self.arch = arch
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
            shape = (size,) if axis in ("layers", "hidden") else (len(arch.with_units(axis)), size)
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
        self, uniform: Mapping[str, Tensor], warmup_fraction: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return masks sampled by these numbers, and the constraint (see `penalty`)."""
        values = {
            axis: gates.sample(alpha, uniform[axis]) for axis, alpha in self.log_alpha.items()
        }
        return values, self.penalty(warmup_fraction)

    def penalty(self, warmup_fraction: float) -> Tensor:
        """Return the Lagrangian's constraint at this fraction of the targets."""
        total = torch.zeros((), device=next(self.parameters()).device)
        for axis, alpha in self.log_alpha.items():
            target = warmup_fraction * self.target[axis]
            constraint_gap = gates.prob_zero(alpha).mean(-1) - target
            first, second = self.multipliers[axis]
            total = total + (first * constraint_gap + second * constraint_gap**2).mean()
        return total

    # all processes must take part in what follows

    def _full_log_alpha(self) -> dict[str, Tensor]:
        return {axis: full_tensor(alpha.detach()) for axis, alpha in self.log_alpha.items()}

    def evaluation_masks(self) -> dict[str, Tensor]:
        """Return masks without noise, as many at zero as are expected to be."""
        masks = {}
        for axis, alpha in self._full_log_alpha().items():
            zeros = gates.prob_zero(gates.clamped(alpha)).sum(-1, keepdim=True).round()
            masks[axis] = gates.final_masks(alpha, alpha.shape[-1] - zeros)
        return masks

    def final_masks(self) -> dict[str, Tensor]:
        """Return masks without noise that keep as many units as were asked for."""
        return {
            axis: gates.final_masks(alpha, self.keep[axis], self.arch, axis).cpu()
            for axis, alpha in self._full_log_alpha().items()
        }

    def results(self) -> dict[str, Any]:
        """Return the expected sparsity of every axis, its target, and the multipliers."""
        return {
            "expected_sparsity": {
                axis: float(gates.prob_zero(gates.clamped(alpha)).mean())
                for axis, alpha in self._full_log_alpha().items()
            },
            "target_sparsity": self.target,
            "multipliers": {
                axis: full_tensor(two.detach()).tolist() for axis, two in self.multipliers.items()
            },
        }


class ShearedObjective(Objective):
    """A masked model: its loss, and the constraint on its architecture.

    `mask_share` is the learning rate of masks and multipliers as a multiple of that of weights.
    """

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
        self._warmup_fraction = 0.0
        self._handles = gates.attach(model, arch, lambda: self.values, embedding=not official)

    def release(self) -> None:
        """Remove the hooks from the model: they and the model refer to each other."""
        for handle in self._handles:
            handle.remove()

    @property
    def trainable(self) -> nn.Module:
        """Masks, and the weights unless they are frozen."""
        parts: dict[str, nn.Module] = {"masks": self.masks}
        if any(weight.requires_grad for weight in self.model.parameters()):
            parts["model"] = self.model
        return nn.ModuleDict(parts)

    @property
    def auxiliary_modules(self) -> list[nn.Module]:
        """The masks."""
        return [self.masks]

    @property
    def clipped(self) -> list[nn.Parameter]:
        """The weights; in the official code, all that is trained."""
        return [*super().clipped, *(self.masks.parameters() if self.official else ())]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights (unless they are frozen), log alpha, and multipliers, which ascend."""
        masks = self.masks
        settings = {"share": self.mask_share, "weight_decay": 0.0}
        return [
            *(group for group in super().parameter_groups() if group["params"]),
            {"params": [*masks.log_alpha.values()], **settings},
            {"params": [*masks.multipliers.values()], "maximize": True, **settings},
        ]

    @torch.no_grad()
    def on_step_begin(self, step: int, steps: int) -> None:
        """Draw this step's random numbers; clamp log alpha to its limits."""
        self._warmup_fraction = min(1.0, step / max(1, warmup_steps(MASK_WARMUP, steps)))
        self._uniform = self.masks.uniform(step)
        for alpha in self.masks.log_alpha.values():
            alpha.clamp_(-gates.LIMIT, gates.LIMIT)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums over the tokens of ids [B, T]: loss with constraint, CE, zero.

        In evaluation masks have no noise, and there is no constraint.
        """
        if not self.model.training:
            self.values = self.masks.evaluation_masks()
            return super().forward(ids)
        self.values, penalty = self.masks(self._uniform, self._warmup_fraction)
        total, ce, kl = super().forward(ids)
        return total + penalty * (ids.shape[0] * (ids.shape[1] - 1)), ce, kl
