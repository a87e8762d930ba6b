"""One safetensors file, streamed: the header first, then tensors one at a time.

The format: eight bytes of header length, a JSON header, then the bytes of the tensors. Reading of
tensors is safetensors' own (zero-copy from a memory map); the writer is ours because the library
has none that streams.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from prunecli.errors import InputError
from prunecli.files import regular, strict
from prunecli.interruption import safe_point

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


# what weights may be stored as, by the names of configs and options
STORAGE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


# of quantised weights, or complex: what safetensors also stores
NOT_READ = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")
MAX_HEADER = 25_000_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16
TENSOR_FILE = ".safetensors"
PIECE = 1 << 22  # bytes of a tensor that are copied, cast, drawn or hashed at once
GROUP = 16  # numbers that torch's generator draws together
INTEGERS = ("I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8")


class Inside(NamedTuple):
    """Where a tensor lies in a stack: a tensor of blocks, each of one tensor or of several.

    Attributes:
        name: the stack, as its file calls it. blocks: how many there are. block: which of them.
        parts: how many tensors share a block. part: which of them.
        interleaved: their rows take turns; otherwise they follow one another.
        transposed: a block has for rows what they have for columns.
    """

    name: str
    blocks: int
    block: int
    parts: int = 1
    part: int = 0
    interleaved: bool = False
    transposed: bool = False

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the stack, of tensors of this shape."""
        joined = (shape[0] * self.parts, *shape[1:])
        return (self.blocks, *(joined[::-1] if self.transposed else joined))

    def view(self, block: "torch.Tensor") -> "torch.Tensor":
        """Return the tensor as a view of its block, which is a row of the stack."""
        rows = block.T if self.transposed and block.dim() == 2 else block
        if self.interleaved:
            return rows[self.part :: self.parts]
        size = len(rows) // self.parts
        return rows[self.part * size : (self.part + 1) * size]


class Spec(NamedTuple):
    """Type and shape of a tensor in a file, and where it is if it lies in a stack."""

    dtype: str
    shape: tuple[int, ...]
    inside: Inside | None = None

    def stored(self, name: str) -> tuple[str, "Spec"]:
        """Return what the header of a file has in its place: itself, or the stack."""
        if self.inside is None:
            return name, self
        return self.inside.name, Spec(self.dtype, self.inside.whole(self.shape))

    @property
    def bytes(self) -> int:
        """Size of the data in bytes."""
        size = ITEM_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def read_header(path: Path) -> dict[str, Spec]:
    """Return the specs of all tensors in a file, in name order, after checking the whole header.

    It is checked before any library sees it. Raises InputError if the file is truncated, has bytes
    left over, or is no safetensors file.
    """
    return _read_header(path)[0]


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Return where the bytes of each tensor begin and end in a file; raise as `read_header`."""
    return _read_header(path)[1]


def _read_header(path: Path) -> tuple[dict[str, Spec], dict[str, tuple[int, int]]]:
    try:
        with regular.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8 + len(strict.LFS))
            strict.refuse_pointer(path, start.decode("latin-1"))
            if len(start) < 8:
                raise _corrupt(path, f"{size} bytes are too few")
            (length,) = struct.unpack("<Q", start[:8])
            if length > size - 8:
                raise _corrupt(path, f"its header claims {length} bytes, the file has {size}")
            if length > MAX_HEADER:
                raise InputError(f"'{path}' has a header of more than {MAX_HEADER / 1e6:g} MB")
            file.seek(8)
            header = strict.parsed(file.read(length))
    except OSError as error:
        raise regular.unreadable(path, error) from None
    except ValueError as error:
        raise _corrupt(path, str(error)) from None
    specs, ranges = _described(path, header)
    reached = 0
    for begin, end in sorted(ranges):
        if begin != reached:
            raise _corrupt(path, "its tensors overlap or leave holes")
        reached = end
    if 8 + length + reached != size:
        raise _corrupt(path, f"expected {8 + length + reached} bytes, got {size}: truncated?")
    in_file = [(8 + length + begin, 8 + length + end) for begin, end in ranges]
    return specs, dict(zip(specs, in_file, strict=True))


def is_marked(path: Path) -> bool:
    """Return whether a file is one of tensors that `TensorWriter` wrote with a mark."""
    start = f'{{"__metadata__":{json.dumps(_notes(True), separators=(",", ":"))}'.encode()
    try:
        with regular.opened(path) as file:
            return file.read(8 + len(start))[8:] == start
    except (OSError, InputError):
        return False


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(f"'{path}' is not a valid safetensors file: {why}", "copy it again")


def _described(path: Path, header: Any) -> tuple[dict[str, Spec], list[tuple[int, int]]]:
    """Return the spec of each tensor, in name order, and the ranges of their bytes."""
    if not isinstance(header, dict):
        raise _corrupt(path, "its header does not describe tensors")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise _corrupt(path, "its metadata are not texts")
    if len(header) > MAX_TENSORS:
        raise InputError(f"'{path}' has {len(header)} tensors, more than {MAX_TENSORS}")
    specs, ranges = {}, []
    for name in sorted(header):
        entry = header[name]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _corrupt(path, "its header does not describe tensors")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not _are_sizes(shape, MAX_DIMENSIONS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
            raise _corrupt(path, f"sizes of tensor '{name}' are no whole numbers")
        if dtype in NOT_READ:
            raise InputError(
                f"'{path}': tensor '{name}' is of type {dtype}, which is not read",
                "if its model is quantised, dequantise it first",
            )
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise _corrupt(path, f"tensor '{name}' is of type '{dtype}', expected one of {known}")
        specs[name] = spec = Spec(dtype, tuple(shape))
        begin, end = offsets
        if end - begin != spec.bytes:
            raise _corrupt(
                path,
                f"tensor '{name}' has {end - begin} bytes, {dtype} {shape} takes {spec.bytes}",
            )
        ranges.append((begin, end))
    return specs, ranges


def _are_sizes(numbers: Any, most: int) -> bool:
    """Return whether these are at most so many whole numbers, each of 64 bits."""
    return (
        isinstance(numbers, list)
        and len(numbers) <= most
        and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    )


def check_integers(source: str) -> tuple[Path, str, Spec]:
    """Return file, name and spec of FILE.safetensors:NAME, an integer tensor [rows, length].

    Raises InputError if it is something else, or has no row of two tokens.
    """
    file, _, name = source.partition(f"{TENSOR_FILE}:")
    path = Path(file.removesuffix(TENSOR_FILE) + TENSOR_FILE)
    if not regular.is_file(path):
        raise InputError(f"no such file: '{path}'", "check the path")
    specs = read_header(path)
    if name not in specs:
        integers = [known for known, spec in specs.items() if spec.dtype in INTEGERS]
        raise InputError(
            f"'{path}' has no tensor '{name}'" if name else f"'{path}' without a tensor's name",
            f"write {path.name}:NAME; its integer tensors: {', '.join(integers) or 'none'}",
        )
    spec = specs[name]
    if spec.dtype not in INTEGERS or len(spec.shape) != 2:
        raise InputError(
            f"'{source}' is {spec.dtype} {list(spec.shape)}, expected integers [sequences, length]"
        )
    if spec.shape[0] == 0 or spec.shape[1] < 2:
        raise InputError(f"'{source}' is too short: [sequences, length] is {list(spec.shape)}")
    return path, name, spec


def spec_of(tensor: "torch.Tensor") -> Spec:
    """Return the spec under which `tensor` is stored."""
    names = {f"torch.{torch_name}": name for name, torch_name in TORCH_NAMES.items()}
    return Spec(names[str(tensor.dtype)], tuple(tensor.shape))


def torch_dtype(name: str) -> "torch.dtype":
    """Return the torch type of a safetensors type name; raise InputError if we cannot compute."""
    import torch

    if name not in TORCH_NAMES:
        raise InputError(f"tensors of type {name} cannot be read", "convert them to BF16 or F32")
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return dtype


def read_tensor(path: Path, name: str, inside: Inside | None = None) -> "torch.Tensor":
    """Return one tensor, or what is inside of it, as a read-only view of the memory-mapped file.

    The file is opened anew each time, so that pages of earlier tensors can leave memory.
    """
    from safetensors import safe_open

    safe_point()
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor if inside is None else inside.view(tensor[inside.block])


class ReadingAhead:
    """Lets the system read tensors of files that will soon be asked for, beside other work.

    Where the system has no call for it, nothing is done: they are read when they are used.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None

    def begin(self, tensors: Iterable[tuple[Path, str]]) -> None:
        """Begin to read tensors, each a file and its name there; wait for those of the last call.

        Raises InputError for a file that is no longer what it was.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        names: dict[Path, list[str]] = {}
        for path, name in dict.fromkeys(tensors):  # a stack is named for each that it holds
            names.setdefault(path, []).append(name)
        wanted = []
        for path, some in names.items():
            known = places(path)
            wanted += [(path, *known[name]) for name in some if name in known]
        if self._thread is not None:
            self._thread.join()
        # the call waits where the system's queue of requests is full
        self._thread = Thread(target=_advise, args=(wanted,), daemon=True)
        self._thread.start()


def _advise(ranges: list[tuple[Path, int, int]]) -> None:
    for path, begin, end in ranges:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def spans(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `count` things of `size` bytes, in turn: of PIECE bytes or less.

    No whole tensor is copied, cast, drawn or compared: embeddings are of gigabytes. Slices begin at
    multiples of GROUP, the least that one has, so that random numbers are those of one draw; the
    last takes what would be less than that.
    """
    step = max(GROUP, PIECE // max(size, 1) // GROUP * GROUP)
    stops = [*range(step, count - GROUP + 1, step), count] if count else []
    return map(slice, [0, *stops], stops)


def row_bytes(tensor: "torch.Tensor") -> int:
    """Return the bytes of a row of a tensor."""
    return tensor.nbytes // max(len(tensor), 1)


def rows_of(tensor: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Yield a tensor's rows in turn, by `spans`, as views; a scalar whole."""
    if tensor.dim() == 0:
        return iter((tensor,))
    return (tensor[rows] for rows in spans(len(tensor), row_bytes(tensor)))


def pieces(tensor: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Yield the numbers of a tensor in turn as vectors, by `spans`."""
    if tensor.is_contiguous():
        yield from rows_of(tensor.reshape(-1))
        return
    for rows in rows_of(tensor):
        yield rows.reshape(-1)


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return one sha256 over the per-tensor digests in name order: independent of sharding."""
    sha = hashlib.sha256()
    for name in sorted(digests):
        sha.update(f"{name} {digests[name]}\n".encode())
    return sha.hexdigest()


def tensor_digest(tensor: "torch.Tensor") -> str:
    """Return the sha256 of type, shape and bytes of a tensor."""
    sha = begun_digest(spec_of(tensor))
    for piece in pieces(tensor):
        sha.update(bytes_of(piece))
    return sha.hexdigest()


def begun_digest(spec: Spec) -> "hashlib._Hash":
    """Return the digest of a tensor whose bytes are yet to come."""
    return hashlib.sha256(f"{spec.dtype} {list(spec.shape)}\n".encode())


def bytes_of(piece: "torch.Tensor") -> memoryview:
    """Return the bytes of one of the `pieces` of a tensor."""
    import torch

    flat = piece.detach().cpu().contiguous()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _notes(marked: bool) -> dict[str, str]:
    """Return what a header says beside its tensors."""
    return {"format": "pt", **({"made_by": "prunecli"} if marked else {})}


def layout(specs: Mapping[str, Spec], marked: bool = False) -> tuple[bytes, dict[str, int]]:
    """Return how a file of these tensors begins, and where after that each one is.

    Of one in a stack: where its block is. Types come by falling size, then names: what safetensors
    itself writes.
    """
    header: dict[str, Any] = {"__metadata__": _notes(marked)}
    offsets, offset = {}, 0
    stored = dict(spec.stored(name) for name, spec in specs.items())
    for name in sorted(stored, key=lambda name: (-ITEM_BYTES[stored[name].dtype], name)):
        spec = stored[name]
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offsets[name] = offset
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    starts = {name: offsets[spec.stored(name)[0]] for name, spec in specs.items()}
    for name, spec in specs.items():
        if spec.inside is not None:
            starts[name] += spec.inside.block * spec.inside.parts * spec.bytes
    return struct.pack("<Q", len(text)) + text, starts


class TensorWriter:
    """Write one safetensors file whose tensors come in any order, one at a time.

    The layout is known from `specs`, so each tensor goes to its place at once. Use as a context
    manager; leaving it checks that every tensor came and flushes the file to disk. `marked` files
    say that they are prunecli's, for the case that they stay without a sidecar. `written` are the
    digests of what an earlier writer left in the file, which has this layout; without any the file
    is made anew. `lacking` makes the error for tensors that never came, by default a ValueError.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, Spec],
        written: Mapping[str, str] | None = None,
        marked: bool = False,
        lacking: Callable[[str], Exception] = ValueError,
    ) -> None:
        self.path, self.specs, self._lacking = path, dict(specs), lacking
        self.digests: dict[str, str] = dict(written or {})
        start, self._offsets = layout(specs, marked)
        self._start = len(start)
        self._file = path.open("r+b" if self.digests else "w+b")
        with regular.named(path):
            self._file.write(start)
            self._file.truncate(self._start + sum(spec.bytes for spec in specs.values()))

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        """Write one tensor to its place; type and shape must be those announced."""
        self.write_rows(name, (tensor,))

    def write_rows(self, name: str, parts: "Iterable[torch.Tensor]") -> None:
        """Write one tensor that comes as parts, each some more of its rows."""
        safe_point()
        spec, count = self.specs.get(name), 0
        if spec is not None and spec.inside is not None:
            self._write_inside(name, spec, spec.inside, parts)
            return
        sha = begun_digest(spec or Spec("", ()))
        at = self._start + self._offsets.get(name, 0)
        for part in parts:
            got = spec_of(part)
            if spec is None or (got.dtype, got.shape[1:]) != (spec.dtype, spec.shape[1:]):
                raise ValueError(f"{name}: announced {spec}, got {got}")
            count += got.shape[0] if got.shape else 1
            for piece in pieces(part):
                data = bytes_of(piece)
                with regular.named(self.path):
                    self._file.seek(at)
                    self._file.write(data)
                sha.update(data)
                at += len(data)
        if spec is None or count != (spec.shape[0] if spec.shape else 1):
            raise ValueError(f"{name}: announced {spec}, got {count} rows")
        self.digests[name] = sha.hexdigest()

    def _write_inside(
        self, name: str, spec: Spec, inside: Inside, parts: "Iterable[torch.Tensor]"
    ) -> None:
        """Write a tensor to its place in a block of a stack, whose other parts stay."""
        import torch

        tensor = torch.cat(list(parts))
        if spec_of(tensor) != Spec(spec.dtype, spec.shape):
            raise ValueError(f"{name}: announced {spec}, got {spec_of(tensor)}")
        at, size = self._start + self._offsets[name], inside.parts * spec.bytes
        with regular.named(self.path):
            self._file.seek(at)
            held = bytearray(self._file.read(size))
            block = torch.frombuffer(held, dtype=tensor.dtype).view(inside.whole(spec.shape)[1:])
            inside.view(block).copy_(tensor)
            self._file.seek(at)
            self._file.write(held)
        self.digests[name] = tensor_digest(tensor)

    def flush(self) -> None:
        """Flush what was written to disk."""
        with regular.named(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                missing = self.specs.keys() - self.digests.keys()
                if missing:
                    raise self._lacking(f"{self.path.name} lacks {sorted(missing)[:3]}")
                self.flush()
        finally:
            with regular.named(self.path):
                self._file.close()


Tensors = Mapping[str, "torch.Tensor"]


class TensorFile(Mapping[str, "torch.Tensor"]):
    """The tensors of one safetensors file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.specs = path, read_header(path)

    def __getitem__(self, name: str) -> "torch.Tensor":
        if name not in self.specs:
            raise KeyError(name)
        return read_tensor(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)
