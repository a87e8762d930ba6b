"""Names of devices: whatever torch can compute on, and one line for everything else."""

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed import device_mesh

from prunecli import evaluate
from prunecli.errors import UsageError
from prunecli.model import device as devices
from prunecli.settings import Compute
from prunecli.training import distributed


def test_a_device_of_another_name(device):
    found = devices.device_of(Compute(device=device))
    assert found.type == device.partition(":")[0]
    devices.check_device(Compute(device=device))


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:9999", "meta", "fpga", "hpu", "", "cpu:", "cuda;", "-1"]
)
def test_what_is_not_there(name):
    with pytest.raises(UsageError, match="--device") as caught:
        evaluate("nowhere", compute=Compute(device=name))
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.remedy


@pytest.fixture
def gpus(monkeypatch):
    """As if every device were there, and no others joined this process."""
    joined = {}
    monkeypatch.setattr(devices, "_there", lambda device: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: joined.update(device=device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda kind, shape: (kind, shape))
    known = {"get_rank": 1, "get_world_size": 2, "destroy_process_group": None, "barrier": None}
    for name, value in known.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    met = lambda url: iter([(dist.HashStore(), 1, 2)])  # noqa: E731
    monkeypatch.setattr(sys.modules["torch.distributed.rendezvous"], "rendezvous", met)

    def join(backend, store, rank, world_size, **more):
        assert (rank, world_size) == (1, 2)
        joined.update(more, by=backend)

    monkeypatch.setattr(dist, "init_process_group", join)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    return joined


def test_each_process_takes_the_gpu_of_its_rank(gpus):
    own = torch.device("cuda", 1)
    assert devices.device_of(Compute(device="cuda")) == own
    with distributed.process_group(Compute(device="cuda")) as started:
        assert (started.device, started.mesh) == (own, ("cuda", (2,)))
    assert gpus == {"device": own, "by": "cpu:gloo,cuda:nccl", "device_id": own}
    with pytest.raises(UsageError, match="cuda:0"):
        devices.device_of(Compute(device="cuda:0"))


def test_more_processes_than_gpus(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="local rank 2 has no GPU: there are 2"):
        devices.device_of(Compute(device="cuda"))


def test_processes_on_cpus_talk_by_gloo(gpus):
    with distributed.process_group(Compute(device="cpu")) as started:
        assert (started.device, started.mesh) == (torch.device("cpu"), ("cpu", (2,)))
    assert gpus == {"by": "gloo"}
