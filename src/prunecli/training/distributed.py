"""Joining the processes that `torchrun` started, and what one tells the others when it fails."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from prunecli import ranks
from prunecli.errors import PruneError, UsageError, of_memory, of_system
from prunecli.files import world
from prunecli.model.device import device_of
from prunecli.settings import Compute, RunContext

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.distributed_c10d import Store

FAILURE = "failure"
_groups = count()  # of this process: each has a room of its own in the store that all can read


@dataclass(frozen=True)
class Ranks(ranks.Ranks):
    """The processes with what training needs: this one's device, and their mesh (None if alone)."""

    device: "torch.device"
    mesh: "DeviceMesh | None"


@contextmanager
def joined(run: RunContext) -> Iterator[RunContext]:
    """Yield the run with all its processes, which divide its rows; torch is loaded for several."""
    if world.size() == 1:
        yield run
        return
    with process_group(run.compute) as ranks:
        yield replace(run, ranks=ranks)


@contextmanager
def process_group(compute: Compute) -> Iterator[Ranks]:
    """Join the processes of this run: by NCCL where they have GPUs, by gloo elsewhere.

    Within another it is the same group. What ends one of them by an error is told to the others,
    which raise it too where they wait for that process.
    """
    import torch.distributed as dist

    device = device_of(compute)
    if world.size() == 1:
        yield Ranks(0, 1, device, None)
    elif dist.is_initialized():
        yield _ranks(device)
    else:
        store = _joined(device)
        try:
            with _telling(store):
                yield _ranks(device)
        finally:
            dist.destroy_process_group()


def _joined(device: "torch.device") -> "Store":
    """Make the group, and return the store that all of its processes can read."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with _stdout_to_stderr():
        try:
            whole, rank, size = next(rendezvous("env://"))
        except ValueError as error:  # of a variable that is missing, or holds no number
            raise UsageError(
                f"WORLD_SIZE says {world.size()} processes: {error}",
                "start them by torchrun, or unset it",
            ) from None
        except RuntimeError as error:  # of the network: a port that is taken, a host nobody knows
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PruneError(
                f"the processes cannot meet at MASTER_ADDR and MASTER_PORT: {why}",
                "start them by torchrun",
            ) from error
        store = PrefixStore(f"prunecli-{next(_groups)}", whole)
        of_group = PrefixStore("group", store)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # with the device named, NCCL need not guess it at the first barrier
            dist.init_process_group(
                "cpu:gloo,cuda:nccl", store=of_group, rank=rank, world_size=size, device_id=device
            )
        else:
            dist.init_process_group("gloo", store=of_group, rank=rank, world_size=size)
    return store


def _ranks(device: "torch.device") -> Ranks:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    with _stdout_to_stderr():
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return Ranks(dist.get_rank(), dist.get_world_size(), device, mesh)


@contextmanager
def _telling(store: "Store") -> Iterator[None]:
    """Tell the others what ends this process; raise what ended another, where that was before.

    An error of a process that is not the first one names it: where `torchrun` ends the first one
    before that can say what it was told, this line is the only one.
    """
    import torch.distributed as dist

    try:
        yield
    except Exception as error:
        # a library's call that all make breaks with a RuntimeError of its own
        if isinstance(error, ranks.Lost | RuntimeError) and store.check([FAILURE]):
            raise _told(*json.loads(store.get(FAILURE))) from error
        system = of_system(error) if isinstance(error, OSError) else None
        known = error if isinstance(error, PruneError) else of_memory(error) or system
        of_all = known or PruneError(str(error))
        told = (dist.get_rank(), of_all.exit_code, of_all.what, of_all.remedy)
        if not isinstance(error, ranks.Lost):
            store.set(FAILURE, json.dumps(told))
            if known and dist.get_rank() > 0:
                raise _told(*told) from error
        raise


def _told(rank: int, status: int, what: str, remedy: str) -> PruneError:
    """Return the error that ended the process `rank`."""
    error = PruneError(f"process {rank}: {what}", remedy)
    error.exit_code = status
    return error


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
