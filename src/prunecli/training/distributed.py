"""The processes of one run: one, or those that `torchrun` started."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from prunecli.files import world
from prunecli.model.device import device_of
from prunecli.settings import Compute


@dataclass(frozen=True)
class Ranks:
    """This process among all: its rank, their number, its device, their mesh (None if alone)."""

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.mesh is not None:
            dist.barrier()


@contextmanager
def process_group(compute: Compute) -> Iterator[Ranks]:
    """Join the processes of this run: by NCCL where they have GPUs, by gloo elsewhere."""
    device = device_of(compute)
    if world.size() == 1:
        yield Ranks(0, 1, device, None)
        return
    with _stdout_to_stderr():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # with the device named, NCCL need not guess it at the first barrier
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        mesh = init_device_mesh(device.type, (world.size(),))
    try:
        yield Ranks(dist.get_rank(), world.size(), device, mesh)
    finally:
        dist.destroy_process_group()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print to stderr: gloo lists its peers on stdout."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
