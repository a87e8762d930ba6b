"""The processes of one run: one alone, or those that `torchrun` started."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from prunecli.model.device import device_of
from prunecli.settings import Compute
from prunecli.training import world


@dataclass(frozen=True)
class Ranks:
    """This process among all: its rank, their number, its device, their mesh (None if alone)."""

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
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
def started(compute: Compute) -> Iterator[Ranks]:
    """Join the processes of this run: by NCCL where they have GPUs, by gloo elsewhere."""
    device = device_of(compute)
    if world.size() == 1:
        yield Ranks(0, 1, device, None)
        return
    with _stdout_to_stderr():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # told which GPU is its own, NCCL need not guess at the first barrier
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
    """Have what libraries print by themselves go to stderr: gloo says on stdout who is there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
