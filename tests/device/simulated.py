"""A device that is not there: tensors that say they lie on `sim:0`, and are computed on the CPU.

Like a GPU, it raises where tensors of two devices meet, except CPU scalars in pointwise operations,
and it tells what crosses the bus. Copies that nobody has to wait for come as late as they may:
when the stream that they are on is waited for. Unlike a GPU, it has the CPU's kernels and its
random numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils import backend_registration as backends

NAME = "sim"
BYTES = 1 << 24  # of its memory: batches of the tiny model are as large as on a CPU
HERE, THERE = torch.device("cpu"), f"{NAME}:0"

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
SCALARS = (aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
# what torch asks the device itself for: new tensors, and what makes them by resizing an empty one
NEW = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye")
# what autocast does in the lower type, as far as these models need it
AUTOCAST = ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention")


@dataclass
class Traffic:
    """Copies between host and device: which way, and bytes. A number that is read is one."""

    copies: list[tuple[str, int]] = field(default_factory=list)

    def _sizes(self, way: str) -> list[int]:
        return [size for to, size in self.copies if to == way]

    @property
    def to_device(self) -> int:
        return len(self._sizes("to_device"))

    @property
    def to_host(self) -> int:
        return len(self._sizes("to_host"))

    @property
    def to_device_bytes(self) -> int:
        return sum(self._sizes("to_device"))

    @property
    def to_host_bytes(self) -> int:
        return sum(self._sizes("to_host"))


_listening: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count what crosses while this is open."""
    _listening.append(Traffic())
    try:
        yield _listening[-1]
    finally:
        _listening.pop()


def _crossed(way: str, size: int) -> None:
    for listener in _listening if size else ():
        listener.copies.append((way, size))


class There(torch.Tensor):
    """A tensor on the device: `held` is the CPU tensor behind it."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{self.held!r} on {THERE}"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation of which a tensor is on the device, or that makes one there."""
    given = [x for x in tree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    strangers = [x for x in given if not isinstance(x, There)]
    wanted = kwargs.get("device")
    there = wanted is None or wanted.type == NAME
    emptied = wanted is not None and wanted.type == "meta"  # what goes there is let go
    if op in COPIES:
        source = args[op is aten.copy_.default]
        if op is aten.copy_.default:
            there = isinstance(args[0], There)
        if isinstance(source, There) != there and not emptied:
            _crossed("to_device" if there else "to_host", source.numel() * source.itemsize)
    elif strangers:
        _check(op, args, strangers)
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{op}: expected a generator of {THERE}, found one of cpu")
    if op is aten.copy_.default and _module.late(args, **kwargs):
        return args[0]
    _count_waits(op, args)
    held: dict[int, torch.Tensor] = {}

    def behind(x: There) -> torch.Tensor:
        held[id(x.held)] = x
        return x.held

    plain, options = tree.tree_map_only(There, behind, (args, kwargs))
    if wanted is not None:
        options["device"] = wanted if emptied else HERE
    made = op(*plain, **options)

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        own = held.get(id(x))
        if own is not None:
            assert own.shape == x.shape, f"{op} in place changes a shape, which is not simulated"
            return own
        return There(x) if there and not any(x is one for one in strangers) else x

    return tree.tree_map_only(torch.Tensor, wrapped, made)


def _copy_from(source: Any, onto: Any, non_blocking: bool = False) -> Any:
    """Copy as torch does where it leaves the Python class of tensors out of account."""
    return _run(aten.copy_.default, onto, source, non_blocking)


def _check(op: Any, args: Any, strangers: list[torch.Tensor]) -> None:
    """Raise RuntimeError where a GPU would: for CPU tensors beside those of the device."""
    if op in INDEXED and isinstance(args[0], There):
        # indices may lie on the CPU, and a value of no dimensions; they are sent
        for one in strangers:
            _crossed("to_device", one.numel() * one.itemsize)
        fits = len(args) < 3 or isinstance(args[2], There) or args[2].dim() == 0
    else:
        pointwise = torch.Tag.pointwise in op.tags or op in SCALARS
        fits = pointwise and all(one.dim() == 0 for one in strangers)
        fits = fits and not (op._schema.is_mutable and not isinstance(args[0], There))
    if not fits:
        raise RuntimeError(f"{op}: expected all tensors on one device, found {THERE} and cpu")


def _count_waits(op: Any, args: Any) -> None:
    """Count what the host must read before it can go on: scalars, and sizes that data decide."""
    if op is aten._local_scalar_dense.default:
        _crossed("to_host", args[0].itemsize)
    elif op in INDEXED:
        # one value under a mask needs no indices
        filled = len(args) > 2 and args[2].numel() == 1
        for index in args[1]:
            if isinstance(index, There) and index.dtype == torch.bool and not filled:
                _crossed("to_host", 8)
    elif torch.Tag.dynamic_output_shape in op.tags:
        _crossed("to_host", 8)


class _Stream:
    """What runs beside the others; only copies that are not waited for are late."""

    device_type = NAME

    def __init__(self, device: Any = None) -> None:
        self.late: list[Callable[[], None]] = []

    def wait_stream(self, other: "_Stream") -> None:
        other.synchronize()

    def synchronize(self) -> None:
        while self.late:
            self.late.pop(0)()


class _Module:
    """`torch.sim`: what torch asks a device's module for. `free` are bytes of its memory."""

    Stream = _Stream

    def __init__(self) -> None:
        self.free = BYTES
        self._current = self._default = _Stream()

    def late(self, args: Any, non_blocking: bool = False) -> bool:
        """Put off a copy between the host and the device that was made on a stream of its own.

        Until it is waited for, there is no number where it goes.
        """
        onto, source, *more = args
        crosses = isinstance(onto, There) != isinstance(source, There)
        if not (crosses and (non_blocking or any(more))) or self._current is self._default:
            return False
        room, comes = (x.held if isinstance(x, There) else x for x in (onto, source))
        room.fill_(torch.nan if room.is_floating_point() else -1)
        self._current.late.append(lambda: room.copy_(comes))
        return True

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return self.free, BYTES

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: the CPU's numbers are drawn, which are seeded beside it."""

    def current_stream(self, device: Any = None) -> _Stream:
        return self._current

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def synchronize(self, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    def max_memory_allocated(self, device: Any = None) -> int:
        return 0

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        pass


_module = _Module()
_libraries: list[torch.library.Library] = []


def _lower(name: str) -> Any:
    """Return an operation as autocast runs it."""
    op = getattr(aten, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        ):
            return op(
                *tree.tree_map_only(
                    torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, args
                ),
                **kwargs,
            )

    return run


@contextmanager
def full() -> Iterator[None]:
    """Let none of the device's memory be free."""
    _module.free = 0
    try:
        yield
    finally:
        _module.free = BYTES


def register() -> str:
    """Make the device known to torch, for the life of this process; return its name."""
    if not _libraries:
        backends._setup_privateuseone_for_python_backend(NAME, backend_module=_module)
        library = torch.library.Library("aten", "IMPL")
        for name in NEW:
            packet, _, overload = name.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            library.impl(name, partial(_run, op), "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        for name in AUTOCAST:
            library.impl(name, _lower(name), "AutocastPrivateUse1")
        others = torch.library.Library("_", "IMPL")
        others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _libraries.extend((library, others))
    return NAME
