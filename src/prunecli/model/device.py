"""Where and in which type to compute."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from prunecli.errors import UsageError
from prunecli.files import scratch, world
from prunecli.files.tensorfile import torch_dtype
from prunecli.model.checkpoint import Reader
from prunecli.settings import Compute

if TYPE_CHECKING:
    import torch


def device_of(compute: Compute) -> "torch.device":
    """Return the device to compute on; raise UsageError if torch cannot compute there.

    Under `torchrun` a GPU is that of this process's local rank.
    """
    import torch

    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device: torch knows no device '{name}'", "use auto, cpu, cuda or cuda:N"
        ) from None
    rank = world.local_rank() if device.type == "cuda" else None
    if rank is not None:
        if device.index is not None:
            raise UsageError(f"--device {name}: each process takes a GPU", "use --device cuda")
        count = torch.cuda.device_count()
        if 0 < count <= rank:
            raise UsageError(
                f"local rank {rank} has no GPU: there are {count}", "start one process per GPU"
            )
        device = torch.device("cuda", rank)
    return _there(device)


@cache
def _there(device: "torch.device") -> "torch.device":
    """Return a device after computing a number on it, in float64, as statistics are."""
    import torch

    try:
        torch.ones((), dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:
        # a missing device raises any of these, often with lines of explanation after the cause
        cause = " ".join(str(error).split()).partition(". ")[0]
        raise UsageError(
            f"--device {device}: torch cannot compute on it here: {cause}", "use --device cpu"
        ) from error
    return device


def dtype_of(compute: Compute, checkpoint: Reader) -> "torch.dtype":
    """Return the compute type: on a CPU float32 unless asked, on a GPU the checkpoint's."""
    import torch

    if compute.dtype != "auto":
        return getattr(torch, compute.dtype)  # type: ignore[no-any-return]
    if device_of(compute).type == "cpu":
        return torch.float32
    return torch_dtype(checkpoint.specs[f"{checkpoint.arch.family.embedding}.weight"].dtype)


def check_device(compute: Compute) -> None:
    """Raise UsageError for a device or `--memory` that cannot be, before anything is read.

    Raises InputError where hidden states are to be kept on disk and there is no place for them.
    """
    _ = compute.most_bytes
    if compute.buffer == "disk":
        scratch.folder()
    if compute.device in ("auto", "cpu"):
        # these always exist, and torch is slow to load
        return
    device_of(compute)


def settled(compute: Compute, checkpoint: Reader) -> Compute:
    """Return `compute` with the device and the type that its `auto` stands for.

    Ids and sidecars hold these: results depend on the compute type, not on the word that chose it.
    Raises UsageError for a device that does not exist.
    """
    dtype = str(dtype_of(compute, checkpoint)).removeprefix("torch.")
    return replace(compute, device=str(device_of(compute)), dtype=dtype)
