"""Schedule, order of rows and loss, each against the plainest statement of what it is."""

from collections import Counter
from math import cos, pi

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prunecli.files.provenance import overlap
from prunecli.files.sidecar import Trained
from prunecli.model.stock import LogitSoftcap
from prunecli.training import losses, schedule
from prunecli.training.losses import NO_CAP, Distillation, next_token_loss
from prunecli.training.order import RowSampler


def test_schedule() -> None:
    rates = [schedule.cosine_lr(step, 100, 2.0, 0.05, 0.1) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    for step in range(5, 100):
        half = (1 + cos(pi * (step - 5) / 94)) / 2
        assert rates[step] == pytest.approx(2.0 * (0.1 + 0.9 * half))
    assert rates[-1] == pytest.approx(0.2)
    assert schedule.cosine_lr(0, 1, 2.0, 0.05, 0.1) == 2.0


@pytest.mark.parametrize(
    ("steps", "share", "warm"),
    [
        (10, 0.05, 1), (30, 0.05, 2), (50, 0.05, 3), (100, 0.05, 5), (100, 0.07, 7), (5, 0.8, 4),
        (5, 1.0, 4), (5, 0.0, 0), (2, 0.05, 1), (1, 0.5, 0), (1000, 1e-6, 1), (3, 0.1, 1),
    ],
)  # fmt: skip
def test_steps_of_warm_up(steps, share, warm) -> None:
    assert schedule.warmup_steps(share, steps) == warm


@given(st.integers(1, 400), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0]))
def test_every_schedule_reaches_peak_and_floor(steps, mille, floor) -> None:
    """Up by equal steps, then down and never up again; two steps are enough for both ends."""
    share = mille / 1000
    rates = [schedule.cosine_lr(step, steps, 2.0, share, floor) for step in range(steps)]
    warm = min(-(-mille * steps // 1000), steps - 1)
    assert schedule.warmup_steps(share, steps) == warm
    assert rates[:warm] == pytest.approx([2.0 * (step + 1) / warm for step in range(warm)])
    assert max(rates) == pytest.approx(2.0) == rates[max(0, warm - 1)]
    assert rates[-1] == pytest.approx(2.0 * floor if steps > 1 else 2.0)
    down = rates[warm:]
    assert down == sorted(down, reverse=True)


class Range:
    """As much of Rows as an order asks for."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start


@given(
    st.integers(0, 5), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(0, 3)
)
def test_rows_do_not_depend_on_the_seed(start, size, batch, steps, seed) -> None:
    order = RowSampler(Range(start, start + size), steps * batch, seed)  # type: ignore[arg-type]
    read = [row for step in range(steps) for row in order.batch(step, batch, slice(None))]
    assert Counter(read) == Counter(start + i % size for i in range(steps * batch))
    assert max(read) == start + min(size, steps * batch) - 1
    # the shares of several processes are the batch
    halves = [order.batch(0, batch, s) for s in (slice(0, batch // 2), slice(batch // 2, batch))]
    assert [row for half in halves for row in half] == read[:batch]


def test_seeds_give_other_orders() -> None:
    rows = Range(0, 50)
    one, other = (RowSampler(rows, 100, seed).batch(0, 50, slice(None)) for seed in (0, 1))  # type: ignore[arg-type]
    second = RowSampler(rows, 100, 0).batch(1, 50, slice(None))  # type: ignore[arg-type]
    assert one != other and one != second and sorted(one) == sorted(other) == sorted(second)


def capped(products, cap: LogitSoftcap):
    products = products / cap.scaling
    return products if cap.cap is None else torch.tanh(products / cap.cap) * cap.cap


def naive(hidden, head, labels, teacher: Distillation | None, cap: LogitSoftcap = NO_CAP):
    logits = capped(hidden @ head.T, cap)
    ce = F.cross_entropy(logits, labels, reduction="sum")
    if teacher is None:
        return ce
    t = teacher.temperature
    theirs = teacher.hidden.double() @ teacher.head.double().T
    p = F.softmax(capped(theirs, teacher.cap) / t, 1)
    kl = F.kl_div(F.log_softmax(logits / t, 1), p, reduction="sum")
    return (1 - teacher.weight) * ce + teacher.weight * t**2 * kl


@pytest.mark.parametrize("piece", [1, 100, 10**6])
@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "cap", [LogitSoftcap(), LogitSoftcap(8.0), LogitSoftcap(1.0, 2.0), LogitSoftcap(2.0, 3.0)]
)
def test_loss_and_its_gradients(monkeypatch, piece, weight, cap) -> None:
    """Float32 in pieces against float64 as a whole: 1e-5 of the greatest gradient."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", piece)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 12, generator=draw, requires_grad=True)
    head = torch.randn(29, 12, generator=draw, requires_grad=True)
    labels = torch.randint(29, (37,), generator=draw)
    teacher = None
    if weight is not None:
        theirs = torch.randn(37, 7, generator=draw), torch.randn(29, 7, generator=draw)
        teacher = Distillation(*theirs, weight, 2.5, cap)
    total, ce, _ = next_token_loss(hidden, head, labels, teacher, cap)
    (total / 3).backward()
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    expected = naive(*wide, labels, teacher, cap)
    (expected / 3).backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(ce) == pytest.approx(naive(*wide, labels, None, cap).item(), rel=1e-6)
    for tensor, exact in zip((hidden, head), wide, strict=True):
        assert (tensor.grad - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


def test_divergence_from_a_near_teacher() -> None:
    """Logarithms near -11, rounded by 5e-7, leave a KL of 5e-5 exact to 3e-7.

    That is what exp may leave of p and q, a unit in the last place of each, and a quarter of it
    for all that is small beside: roundings times |log p - log q| or |p - q|.
    """
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        head, noise = torch.randn(2, 32768, 1, generator=draw)
        one = torch.ones(1, 1)
        teacher = Distillation(one, head + 0.01 * noise, 1.0, 1.0)
        _, _, kl = next_token_loss(one, head, torch.tensor([0]), teacher)
        log_p, log_q = (x.T.double().log_softmax(1) for x in (teacher.head, head))
        exact = (log_p.exp() * (log_p - log_q)).sum()
        assert abs(kl.double() - exact) < 5 * 2**-24


def test_loss_without_gradients_changes_nothing() -> None:
    hidden, head = torch.randn(5, 4), torch.randn(9, 4)
    labels = torch.arange(5)
    with torch.no_grad():
        total, _, _ = next_token_loss(hidden, head, labels)
    assert float(total) == pytest.approx(float(naive(hidden, head, labels, None)), rel=1e-6)


RANGES = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda two: tuple(sorted(two)))


@given(RANGES, st.lists(st.tuples(st.sampled_from("ab"), RANGES), max_size=5))
def test_shared_rows_count_once(own, others) -> None:
    records = [Trained(rows=rows, range=(a, b), count=1) for rows, (a, b) in others]
    seen = {row for rows, (a, b) in others if rows == "a" for row in range(a, b)}
    assert overlap(Trained(rows="a", range=own, count=1), records) == len(seen & set(range(*own)))
