"""Where and in which type to compute."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from prunecli.errors import UsageError
from prunecli.files import scratch, world
from prunecli.files.tensorfile import torch_dtype
from prunecli.model.checkpoint import Reader
from prunecli.settings import Compute, RunContext

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


class DeviceMemory(NamedTuple):
    """A device's own memory, in bytes."""

    free: int
    all: int


def memory_of(device: "torch.device") -> DeviceMemory | None:
    """Return what memory a device has of its own; None of a CPU, and where it does not tell."""
    import torch

    told = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if told is None else DeviceMemory(*told(device))


@contextmanager
def whole_float32() -> Iterator[None]:
    """Compute products of float32 in float32, where this process may do them in TF32 or bfloat16.

    That is what `torch.set_float32_matmul_precision` and its like allow: fewer digits than
    statistics have to have. Afterwards all is as it was.
    """
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        with warnings.catch_warnings():
            # torch 2.9 tells whoever asks for the word to say it otherwise
            warnings.simplefilter("ignore", UserWarning)
            word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = None  # it was said by backend alone, which this older function cannot tell
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if word is not None:
            torch.set_float32_matmul_precision(word)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


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


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself: others are slower with it than float32.

    AMX and AVX-512 BF16 do on x86, and BF16 on Arm, of which older versions of torch do not tell.
    """
    import torch

    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is None:
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    known = tell()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def computable(run: RunContext) -> RunContext:
    """Return a run in a type that is no slower here than float32, and tell if it is another one.

    Raises as `check_device` does.
    """
    check_device(run.compute)
    narrow = run.compute.dtype == "bfloat16"
    if not narrow or device_of(run.compute).type != "cpu" or has_bfloat16():
        return run
    run.report.info(
        "this CPU has no units for bfloat16 and is slower with it: computing in float32"
    )
    return replace(run, compute=replace(run.compute, dtype="float32"))


def settled(compute: Compute, checkpoint: Reader) -> Compute:
    """Return `compute` with the device and the type that its `auto` stands for.

    Ids and sidecars hold these: results depend on the compute type, not on the word that chose it.
    Raises UsageError for a device that does not exist.
    """
    dtype = str(dtype_of(compute, checkpoint)).removeprefix("torch.")
    return replace(compute, device=str(device_of(compute)), dtype=dtype)
