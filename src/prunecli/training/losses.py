"""Next-token loss from hidden states, with distillation, without a matrix of all logits.

Tokens go through the output head in chunks, and the gradients of a chunk are computed at once; the
largest tensor is [chunk, V], whatever the length of the batch. Logits, losses and their gradients
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

CHUNK_LOGITS = 1 << 24  # 64 MB in float32
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

    `hidden` [N, D] is the output of the final norm, `head` is [V, D], `labels` [N] are ids.
    """
    with_grad = torch.is_grad_enabled()
    total, ce, kl = _Loss.apply(hidden, head, labels, teacher, cap, with_grad)  # type: ignore[no-untyped-call]
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
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.to(hidden.dtype)
            d_hidden = torch.empty_like(hidden) if with_grad else None
            trained = with_grad and ctx.needs_input_grad[1]
            d_head = torch.zeros_like(head, dtype=torch.float32) if trained else None
            sums = torch.zeros(2, device=hidden.device)
            size = max(1, CHUNK_LOGITS // len(head))
            for start in range(0, len(hidden), size):
                chunk = slice(start, start + size)
                logits = cap((hidden[chunk] @ weight.T).float())  # [chunk, V]
                d_cap = cap.slope(logits)
                ce, kl, d_logits = _chunk(
                    logits, labels[chunk], _chunk_of(teacher, chunk), with_grad
                )
                sums += torch.stack([ce, kl])
                if d_hidden is not None:
                    d_logits = (d_logits * d_cap).to(hidden.dtype)
                    d_hidden[chunk] = d_logits @ weight
                if d_head is not None:
                    d_head += (d_logits.T @ hidden[chunk]).float()
        mix = teacher.weight if teacher else 0.0
        square = teacher.temperature**2 if teacher else 1.0
        total = (1 - mix) * sums[0] + mix * square * sums[1]
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        ce, kl = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(ce, kl)
        return total, ce, kl

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        d_total = d_outputs[0]
        d_hidden = d_hidden * d_total.to(d_hidden.dtype)
        return d_hidden, None if d_head is None else d_head * d_total, None, None, None, None


def _chunk_of(teacher: Distillation | None, chunk: slice) -> Distillation | None:
    return None if teacher is None else teacher._replace(hidden=teacher.hidden[chunk])


def _chunk(
    logits: Tensor, labels: Tensor, teacher: Distillation | None, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed CE and KL of a chunk, and dL/dlogits, which may reuse logits' memory."""
    picked = labels[:, None]
    total = logits.logsumexp(1, keepdim=True)
    ce = (total - logits.gather(1, picked)).sum()
    if teacher is None:
        if with_grad:
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
    d_logits = (logits - total).exp_()
    d_logits.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=d_logits.dtype))
    d_logits.mul_(1 - weight).add_(gap, alpha=weight * temperature)
    return ce, kl, d_logits
