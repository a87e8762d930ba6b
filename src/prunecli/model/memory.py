"""Memory: that of a long stream is kept at what is alive, and that of a run is tried before it."""

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.files import scratch, world
from prunecli.files.artefact import Artefact
from prunecli.files.sidecar import Computed
from prunecli.files.tensorfile import ITEM_BYTES, PIECE, STORAGE, Spec
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader
from prunecli.model.device import device_of, memory_of
from prunecli.settings import BATCH_TOKENS, Compute, Result, RunContext

if TYPE_CHECKING:
    import torch

# of the program and its libraries, torch and transformers among them, with HOLES
PROGRAM = 480_000_000
PARTS = 4 * PIECE  # of tensors that are compared, hashed and written, and buffers of files
STREAMS = 1 << 30  # bytes of hidden states at once, where one model is tried in many ways
# through a layer at once on an accelerator, which fewer leave idle, and the part of its memory that
# they may take
DEVICE_TOKENS, DEVICE_SHARE = 1 << 14, 8
FREE = 0.9  # of a device's free memory: what is rounded up, and what its libraries take, is beside
# where hidden states can go, the fastest place first; from memory they go on where they must
PLACES = {
    "auto": ("device", "ram", "disk"),
    "device": ("device",),
    "ram": ("ram", "disk"),
    "disk": ("disk",),
}
STATE_BYTES = 16  # of training, a parameter: weight, gradient and two moments in float32
# of a run: from here on, at least minutes on the fastest of CPUs, its memory is tried by itself
LONG_FLOPS = 1e14
# glibc's: tensors larger than MAPPED have memory of their own, which is the greatest that it takes;
# HOLES may be free in its heap
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED, HOLES = 32 << 20, 128 << 20
# touches every page in steps, as the system gives memory only then; if it is short of memory, it
# is to end this process and no other
TOUCH = """
import mmap, sys
size, step = int(sys.argv[1]), 1 << 26
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
except OSError:
    pass
held, filled = mmap.mmap(-1, size), bytes([1]) * step
for start in range(0, size, step):
    held[start : start + step] = filled[: size - start]
"""


class Heap:
    """The heap of the process, as glibc keeps it: what is freed stays there, to be taken again.

    By itself glibc gives the large tensors of a batch back at once, and takes a fault for each page
    of the next batch's: a fifth of the time of pruning a small model. If it kept them all, holes
    would add up, layer after layer, to several times what is alive.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._trim = getattr(library, "malloc_trim", None)
        self._held = 0  # of the process when holes were given back last
        if choose := getattr(library, "mallopt", None):
            choose(M_MMAP_THRESHOLD, MAPPED)
            choose(M_TRIM_THRESHOLD, HOLES)

    def release(self) -> None:
        """Give what is free back to the system, where the process has grown by more than HOLES."""
        if self._trim is None:
            return
        held = _anonymous()
        self._held = min(held, self._held)
        if held - self._held > HOLES:
            self.give_back()
            self._held = _anonymous()

    def give_back(self) -> None:
        """Give all that is free back to the system."""
        if self._trim is not None:
            self._trim(0)


def _anonymous() -> int:
    """Return how many bytes the process holds that are in no file."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * mmap.PAGESIZE


@cache
def heap() -> Heap:
    """Return the heap of this process, which is set up when it is first asked for."""
    return Heap()


def release() -> None:
    """Give freed memory back to the system, where that is much."""
    heap().release()


@dataclass(frozen=True)
class MemoryNeed:
    """An estimate of what a run holds at its peak.

    Attributes:
        host, device: bytes by what takes them, in the host's memory and in the device's, which on
            a CPU is the same.
        flops: of the whole run.
    """

    host: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, int] = field(default_factory=dict)
    flops: float = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.host.values()) + sum(self.device.values())

    def times(self, what: str, factor: int) -> "MemoryNeed":
        """Return the need with so many times as much of one thing, wherever that is held."""
        host, device = (
            {name: size * factor if name == what else size for name, size in held.items()}
            for held in (self.host, self.device)
        )
        return replace(self, host=host, device=device)

    def settled(
        self, artefact: Artefact, expected: Mapping[str, Any], compute: Compute
    ) -> Result | None:
        """Do as `Artefact.settled` does; with `--probe`, or before long work, try the memory.

        A dry run tells the estimate. Raises InputError where the system does not give that much.
        """
        if artefact.run.output.probe:
            self.attempt(compute)
        found = artefact.settled({**expected, "memory_bytes": self.total})
        if found is None and self.flops >= LONG_FLOPS and not artefact.run.output.probe:
            self.attempt(compute)
        return found

    def attempt(self, compute: Compute) -> None:
        """Allocate as much and give it back; raise InputError if that fails."""
        device = device_of(compute)
        on_cpu = device.type == "cpu"
        host = {**self.host, **(self.device if on_cpu else {})}
        if not _fits_host(sum(host.values())):
            raise _too_little("memory", host)
        if not on_cpu and not _fits_device(sum(self.device.values()), device):
            raise _too_little(f"memory on '{device}'", self.device)


def within(run: RunContext, need_of: Callable[[RunContext], MemoryNeed]) -> RunContext:
    """Return the run with its hidden states in the first place of `--buffer` where they fit.

    `need_of` tells what it needs. Raises InputError where even the least does not fit, into
    `--memory` or into what a device has free.
    """
    compute, most = run.compute, run.compute.most_bytes
    device = device_of(compute)
    on_cpu = device.type == "cpu"
    # what a CPU computes with is the machine's memory
    buffer = "ram" if on_cpu and compute.buffer in ("auto", "device") else compute.buffer
    for place in PLACES[buffer]:
        placed = replace(run, compute=replace(compute, buffer=place))
        need = need_of(placed)
        if place == "device" and not _has_free(need, device, unless_told=buffer == place):
            if buffer == place:
                raise _too_little(f"free memory on '{device}'", need.device)
            continue
        if most is None or _taken(need, compute) <= most:
            if place == "disk" and buffer != place:
                scratch.folder()
                run.report.info(f"hidden states are kept in a file: --memory {compute.memory}")
            return placed
    parts = _told({"the program": PROGRAM, **_in_memory(need, compute)})
    raise InputError(
        f"--memory {compute.memory} is too little: the run takes at least "
        f"{_taken(need, compute) / 1e9:.3g} GB ({parts})",
        "give it more, or fewer or shorter windows",
    )


def _has_free(need: MemoryNeed, device: "torch.device", unless_told: bool) -> bool:
    """Return whether a device has that much free, or `unless_told` where it does not tell."""
    known = memory_of(device)
    return unless_told if known is None else sum(need.device.values()) <= FREE * known.free


def _in_memory(need: MemoryNeed, compute: Compute) -> dict[str, int]:
    """Return what is held in the machine's own memory."""
    on_cpu = device_of(compute).type == "cpu"
    return {**need.host, **(need.device if on_cpu else {})}


def _taken(need: MemoryNeed, compute: Compute) -> int:
    return PROGRAM + sum(_in_memory(need, compute).values())


def streams_bytes(compute: Compute) -> int:
    """Return how many bytes of hidden states are held where one model is tried in many ways.

    They are on the device, whose own memory `--memory` does not bound.
    """
    device = device_of(compute)
    if device.type != "cpu":
        known = memory_of(device)
        return STREAMS if known is None else max(STREAMS, known.all // 4)
    most = compute.most_bytes
    return STREAMS if most is None else min(STREAMS, most // 4)


def batch_tokens(arch: Arch, compute: Compute) -> int:
    """Return how many tokens go through a layer at once, unless one window has more.

    On an accelerator as many as an eighth of its memory takes: of all of it, so that on equal
    devices results are equal, whatever else runs there.
    """
    device = device_of(compute)
    known = None if device.type == "cpu" else memory_of(device)
    tokens = BATCH_TOKENS if known is None else DEVICE_TOKENS
    while tokens > BATCH_TOKENS and known is not None:
        if tokens * _token_bytes(arch, compute) <= known.all // DEVICE_SHARE:
            break
        tokens //= 2
    return tokens


def computed(arch: Arch, compute: Compute, ranks: int) -> Computed:
    """Return what a sidecar says of a walk by so many processes."""
    return Computed(compute.device, compute.dtype, batch_tokens(arch, compute), ranks)


def _widest_ffn(arch: Arch) -> int:
    """Return the FFN channels of the layers that have the most."""
    return max(arch.size("ffn", i) for i in arch.sorts)


def _token_bytes(arch: Arch, compute: Compute) -> int:
    """Return the bytes that a token takes on its way through a layer."""
    item, ffn = item_bytes(compute), _widest_ffn(arch)
    widest = max(arch.hidden, ffn)
    # what enters and leaves the linears, and a residual stream; statistics read it in float32
    activations = (12 * arch.hidden + arch.ffn_matrices * ffn) * item
    return activations + (2 * 4 * widest if item < 4 else 0)


def item_bytes(compute: Compute) -> int:
    """Return the bytes of a number in a compute type that is settled."""
    return ITEM_BYTES[STORAGE[compute.dtype]]


def of_walk(
    checkpoint: Reader,
    compute: Compute,
    rows: int,
    length: int,
    statistics: int = 0,
    passes: float = 1,
    edited: bool = False,
) -> MemoryNeed:
    """Return what a walk over the layers needs, of windows [rows, length] in its compute type.

    `statistics` are bytes that the collectors of a layer hold, and formulas make of them; `passes`
    is how often the windows go through the model. On a CPU, weights are those of the mapped file,
    which the system can drop, but for those of an `edited` layer; unless hidden states are in a
    file, where these are then too.
    """
    arch, item = checkpoint.arch, item_bytes(compute)
    on_cpu = device_of(compute).type == "cpu"
    head = arch.family.embedding if arch.tied else arch.family.head
    layers = [_layer(checkpoint, i) for i in arch.sorts]
    layer = max(layers, key=lambda specs: sum(spec.bytes for spec in specs))
    cast = [
        prod(spec.shape) * item for spec in chain(*layers) if spec.dtype != STORAGE[compute.dtype]
    ]
    hidden = rows * length * arch.states_width * item
    in_memory = 0 if compute.buffer in ("device", "disk") else hidden
    if in_memory and not on_cpu:
        in_memory = 1 << (hidden - 1).bit_length()  # torch takes pinned memory in powers of two
    held = not on_cpu or (edited and compute.buffer != "disk")
    # a batch is at least one window
    activations = max(batch_tokens(arch, compute), length) * _token_bytes(arch, compute)
    return MemoryNeed(
        {"hidden states": in_memory, "parts of tensors": PARTS},
        {
            **({"hidden states": hidden} if compute.buffer == "device" else {}),
            "output head": 0 if on_cpu else checkpoint.specs[f"{head}.weight"].bytes,
            "one layer": sum(spec.bytes for spec in layer) if held else 0,
            "a matrix": max(cast, default=0),
            "a batch": activations,
            "statistics": statistics,
        },
        passes * rows * arch.flops(length),
    )


def _layer(checkpoint: Reader, i: int) -> list[Spec]:
    prefix = checkpoint.arch.prefix(i)
    return [spec for name, spec in checkpoint.specs.items() if name.startswith(prefix)]


def training_flops(arch: Arch, tokens: int, length: int) -> int:
    """Return the FLOPs of training on windows of `length`: a backward pass takes two forward."""
    return 3 * arch.flops(length) * (tokens // length)


def of_training(state_bytes: int, flops: float, activations: int) -> MemoryNeed:
    """Return what training needs: weights, moments and gradients, and `activations`.

    Several processes hold a share each, and activations of their own.
    """
    share = -(-state_bytes // world.size())
    held = {"weights, moments and gradients": share, "activations": activations}
    return MemoryNeed({}, held, flops)


def activations(arch: Arch, tokens: int, item: int, recompute: bool = False) -> int:
    """Return the bytes that a backward pass over `tokens` reads, each of `item` bytes."""
    # what linears, norms, rotations and gates keep
    of_layer = 16 * arch.hidden + 5 * _widest_ffn(arch)
    kept = arch.layers * arch.hidden + of_layer if recompute else arch.layers * of_layer
    return tokens * kept * item


def _fits_host(size: int) -> bool:
    if size == 0:
        return True
    try:
        line = [sys.executable, "-S", "-c", TOUCH, str(size)]
        return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except MemoryError:
        return False


def _fits_device(size: int, device: "torch.device") -> bool:
    import torch

    try:
        held = torch.empty(size, dtype=torch.uint8, device=device)
    except (RuntimeError, MemoryError):  # each kind of device has its own
        return False
    del held
    return True


def _too_little(what: str, need: Mapping[str, int]) -> InputError:
    return InputError(
        f"too little {what}: the run needs about {sum(need.values()) / 1e9:.3g} GB ({_told(need)})",
        "try --buffer disk, fewer --nsamples or --dtype bfloat16, or a larger machine",
    )


def _told(need: Mapping[str, int]) -> str:
    """Return what takes memory, the largest first, in GB."""
    largest = sorted(((size, name) for name, size in need.items() if size), reverse=True)
    return ", ".join(f"{name} {size / 1e9:.3g}" for size, name in largest)
