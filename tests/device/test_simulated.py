"""The simulated device itself: what it must refuse, and what it must count."""

import pytest
import simulated
import torch

pytestmark = pytest.mark.usefixtures("counted")


@pytest.fixture
def x(device) -> torch.Tensor:
    return torch.arange(12, dtype=torch.float32).view(3, 4).to(device)


def test_it_claims_another_device(x, device):
    assert (x.device.type, (x @ x.T).device.type) == (device, device)
    assert torch.zeros(2, device=device).device.type == x.new_ones(2).device.type == device
    assert x.cpu().device.type == "cpu"
    assert torch.equal((x @ x.T).cpu(), x.cpu() @ x.cpu().T)


@pytest.mark.parametrize(
    "meet",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.ones(4) + x.sum(),
        lambda x: x @ torch.ones(4, 3),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.ones(3, 4)[x[0].long()],
        lambda x: x.where(x > 0, torch.ones(3, 4)),
        lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
        lambda x: x.masked_fill(torch.ones(3, 4, dtype=torch.bool), 0),
        lambda x: torch.nn.functional.embedding(x.long(), torch.ones(12, 2)),
        lambda x: torch.ones(3, 4).add_(x),
        lambda x: x.addmm_(torch.eye(3), x),
        lambda x: x.uniform_(generator=torch.Generator()),
        lambda x: x.numpy(),
    ],
)
def test_two_devices_must_not_meet(x, meet):
    with pytest.raises((RuntimeError, TypeError)):
        meet(x)


def test_scalars_of_the_cpu_may_meet_it(x):
    assert (x + torch.tensor(1.0)).sum().item() == 78
    assert (2 * x).masked_fill(x > 3, torch.tensor(0.0)).sum().item() == 12


@pytest.mark.parametrize(
    ("cross", "copies"),
    [
        (lambda x: x.cpu(), [("to_host", 48)]),
        (lambda x: x.tolist(), [("to_host", 48)]),
        (lambda x: x.to("meta"), []),
        (lambda x: x.half().cpu().to(x.device), [("to_host", 24), ("to_device", 24)]),
        (lambda x: float(x.sum()), [("to_host", 4)]),
        (lambda x: bool((x > 3).any()), [("to_host", 1)]),
        (lambda x: x.copy_(torch.zeros(3, 4)), [("to_device", 48)]),
        (lambda x: torch.zeros(3, 4).copy_(x), [("to_host", 48)]),
        (lambda x: x[torch.tensor([1])], [("to_device", 8)]),
        (lambda x: x[[0, 2]], [("to_device", 16)]),
        (lambda x: x[x > 3], [("to_host", 8)]),
        (lambda x: x.nonzero(), [("to_host", 8)]),
        (lambda x: x.to(x.device, torch.float64).double() @ x.T.double(), []),
        (lambda x: x[1:, ::2].T.contiguous().view(-1).clamp_(0, 1).fill_(2), []),
    ],
)
def test_what_crosses_is_counted(x, cross, copies):
    with simulated.traffic() as seen:
        cross(x)
    assert seen.copies == copies
    assert seen.to_host_bytes == sum(size for way, size in copies if way == "to_host")


def test_a_copy_beside_comes_when_it_is_waited_for(device):
    module, x = torch.get_device_module(device), torch.arange(3.0)
    side = module.Stream()
    with module.stream(side):
        there = x.to(device, non_blocking=True)
        assert there.cpu().isnan().all()
    module.current_stream().wait_stream(side)
    assert there.tolist() == x.tolist()
    back = torch.zeros(3)
    with module.stream(side):
        back.copy_(there, non_blocking=True)
    assert back.isnan().all()
    side.synchronize()
    assert back.tolist() == x.tolist()


def test_gradients_and_views(device):
    """A step of a small network, changed in place through views, is that of the CPU."""
    found = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3).to(place)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        with torch.no_grad():
            layer.weight[1:].mul_(2)
        layer(torch.ones(5, 4, device=place)).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        found.append(layer.weight.detach().cpu())
    assert torch.equal(*found)
