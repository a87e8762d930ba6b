"""Next-token loss from hidden states, with distillation, without a matrix of all logits.

A piece of the tokens at a time meets the whole vocabulary, and its gradients are made at once;
what is held is [piece, V], whatever the length of the batch. Logits, losses and their gradients
are float32 whatever the compute type; products run in the compute type.

    L = (1 - w) CE(labels, z) + w t^2 KL(softmax(z_teacher / t) || softmax(z / t))

with z the logits (products of the head, capped where the family does that), w the distillation
weight and t its temperature (Hinton et al. 2015, arXiv 1503.02531, section 2).
dL/dz = (1 - w) (softmax(z) - onehot) + w t (q - p).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunecli.model.stock import LogitSoftcap

PIECE = 1 << 24  # logits at once: 64 MB in float32
NO_CAP = LogitSoftcap()


class Distillation(NamedTuple):
    """The teacher's hidden states [N, D'], output head [V, D'] and cap; weight and temperature."""

    hidden: Tensor
    head: Tensor
    weight: float
    temperature: float
    cap: LogitSoftcap = NO_CAP


def next_token_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    teacher: Distillation | None = None,
    cap: LogitSoftcap = NO_CAP,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss L to differentiate, the summed CE, and the summed KL.

    `hidden` [N, D] left the final norm, `head` is [V, D], `labels` [N] are ids.
    """
    slopes = torch.is_grad_enabled()
    total, ce, kl = _Loss.apply(hidden, head, labels, teacher, cap, slopes)  # type: ignore[no-untyped-call]
    return total, ce, kl


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        teacher: Distillation | None,
        cap: LogitSoftcap,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.to(hidden.dtype)
            d_hidden = torch.empty_like(hidden) if wanted else None
            trained = wanted and ctx.needs_input_grad[1]
            d_head = torch.zeros_like(head, dtype=torch.float32) if trained else None
            sums = torch.zeros(2, device=hidden.device)
            size = max(1, PIECE // len(head))
            for start in range(0, len(hidden), size):
                piece = slice(start, start + size)
                logits = cap((hidden[piece] @ weight.T).float())
                bend = cap.slope(logits)
                ce, kl, slope = _piece(logits, labels[piece], _at(teacher, piece), wanted)
                sums += torch.stack([ce, kl])
                if d_hidden is not None:
                    slope = (slope * bend).to(hidden.dtype)
                    d_hidden[piece] = slope @ weight
                if d_head is not None:
                    d_head += (slope.T @ hidden[piece]).float()
        mix = teacher.weight if teacher else 0.0
        square = teacher.temperature**2 if teacher else 1.0
        total = (1 - mix) * sums[0] + mix * square * sums[1]
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        ce, kl = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(ce, kl)
        return total, ce, kl

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        of_hidden = d_hidden * slopes[0].to(d_hidden.dtype)
        return of_hidden, None if d_head is None else d_head * slopes[0], None, None, None, None


def _at(teacher: Distillation | None, piece: slice) -> Distillation | None:
    if teacher is None:
        return None
    return teacher._replace(hidden=teacher.hidden[piece], head=teacher.head)


def _piece(
    logits: Tensor, labels: Tensor, teacher: Distillation | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed CE and KL of a piece, and dL/dlogits, which may take logits' memory."""
    picked = labels[:, None]
    total = logits.logsumexp(1, keepdim=True)
    ce = (total - logits.gather(1, picked)).sum()
    if teacher is None:
        if wanted:
            logits.sub_(total).exp_()
            logits.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=logits.dtype))
        return ce, torch.zeros_like(ce), logits
    weight, temperature = teacher.weight, teacher.temperature
    theirs = teacher.cap((teacher.hidden @ teacher.head.to(teacher.hidden.dtype).T).float())
    log_p = (theirs / temperature).log_softmax(1)
    log_q = (logits / temperature).log_softmax(1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum()
    gap = log_q.exp_().sub_(p)
    # 0 but for rounding, and takes away what the rounding of log p and log q put into the sum above
    kl += gap.sum()
    slope = (logits - total).exp_()
    slope.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=slope.dtype))
    slope.mul_(1 - weight).add_(gap, alpha=weight * temperature)
    return ce, kl, slope
