"""One safetensors file, streamed: the header first, then tensors one at a time.

The format: eight bytes of header length, a JSON header, then the bytes of the tensors. Reading of
tensors is safetensors' own (zero-copy from a memory map); the writer is ours because the library
has none that streams.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from prunecli.errors import InputError
from prunecli.files import strict

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
MAX_HEADER = 100_000_000
TENSOR_FILE = ".safetensors"
INTEGERS = ("I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8")


class Spec(NamedTuple):
    """Type and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the data in bytes."""
        size = ITEM_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def read_header(path: Path) -> dict[str, Spec]:
    """Return the specs of all tensors in a file, in name order, after checking the whole header.

    Raises InputError if the file is truncated, has bytes left over, or is no safetensors file.
    """

    def corrupt(why: str) -> InputError:
        return InputError(f"'{path}' is not a valid safetensors file: {why}", "copy it again")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise corrupt(f"{size} bytes are too few")
            strict.refuse_pointer(path, (start + file.read(len(strict.LFS))).decode("latin-1"))
            file.seek(8)
            (length,) = struct.unpack("<Q", start)
            if length > min(MAX_HEADER, size - 8):
                raise corrupt(f"its header claims {length} bytes, the file has {size}")
            header = strict.parsed(file.read(length), _no_duplicates)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise corrupt(str(error)) from None
    try:
        specs, ranges = {}, []
        header.pop("__metadata__", None)
        for name in sorted(header):
            begin, end = header[name]["data_offsets"]
            spec = Spec(header[name]["dtype"], tuple(header[name]["shape"]))
            if not all(type(number) is int and number >= 0 for number in (begin, end, *spec.shape)):
                raise corrupt(f"sizes of tensor '{name}' are no whole numbers")
            if spec.dtype in NOT_READ:
                raise InputError(
                    f"'{path}': tensor '{name}' is of type {spec.dtype}, which is not read",
                    "if its model is quantised, dequantise it first",
                )
            if spec.dtype not in ITEM_BYTES:
                known = ", ".join(ITEM_BYTES)
                raise corrupt(f"tensor '{name}' is of type '{spec.dtype}', expected one of {known}")
            if end - begin != spec.bytes:
                raise corrupt(
                    f"tensor '{name}' has {end - begin} bytes, {spec.dtype} {list(spec.shape)} "
                    f"takes {spec.bytes}"
                )
            specs[name] = spec
            ranges.append((begin, end))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise corrupt("its header does not describe tensors") from None
    reached = 0
    for begin, end in sorted(ranges):
        if begin != reached:
            raise corrupt("its tensors overlap or leave holes")
        reached = end
    if 8 + length + reached != size:
        raise corrupt(f"expected {8 + length + reached} bytes, got {size}: truncated?")
    return specs


def check_integers(source: str) -> tuple[Path, str, Spec]:
    """Return file, name and spec of FILE.safetensors:NAME, an integer tensor [rows, length].

    Raises InputError if it is something else, or has no row of two tokens.
    """
    file, _, name = source.partition(f"{TENSOR_FILE}:")
    path = Path(file.removesuffix(TENSOR_FILE) + TENSOR_FILE)
    if not path.is_file():
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


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return dict(pairs)


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


def read_tensor(path: Path, name: str) -> "torch.Tensor":
    """Return one tensor as a read-only view of the memory-mapped file.

    The file is opened anew each time, so that pages of earlier tensors can leave memory.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return one sha256 over the per-tensor digests in name order: independent of sharding."""
    sha = hashlib.sha256()
    for name in sorted(digests):
        sha.update(f"{name} {digests[name]}\n".encode())
    return sha.hexdigest()


def tensor_digest(tensor: "torch.Tensor") -> str:
    """Return the sha256 of type, shape and bytes of a tensor."""
    spec = spec_of(tensor)
    sha = hashlib.sha256(f"{spec.dtype} {list(spec.shape)}\n".encode())
    sha.update(_bytes(tensor))
    return sha.hexdigest()


def _bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def layout(specs: Mapping[str, Spec]) -> tuple[bytes, dict[str, int]]:
    """Return how a file of these tensors begins, and where after that each one is.

    Types come by falling size, then names: what safetensors itself writes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, offset = {}, 0
    for name in sorted(specs, key=lambda name: (-ITEM_BYTES[specs[name].dtype], name)):
        spec = specs[name]
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offsets[name] = offset
        offset += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


class TensorWriter:
    """Write one safetensors file whose tensors come in any order, one at a time.

    The layout is known from `specs`, so each tensor goes to its place at once. Use as a context
    manager; leaving it checks that every tensor came and flushes the file to disk.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        self.path, self.specs = path, dict(specs)
        self.digests: dict[str, str] = {}
        start, self._offsets = layout(specs)
        self._file = path.open("wb")
        self._file.write(start)
        self._start = len(start)
        self._file.truncate(self._start + sum(spec.bytes for spec in specs.values()))

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        """Write one tensor to its place; type and shape must be those announced."""
        spec = spec_of(tensor)
        if self.specs.get(name) != spec:
            raise ValueError(f"{name}: announced {self.specs.get(name)}, got {spec}")
        self._file.seek(self._start + self._offsets[name])
        self._file.write(_bytes(tensor))
        self.digests[name] = tensor_digest(tensor)

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
                    raise ValueError(f"{self.path.name}: never written: {sorted(missing)[:3]}")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


Tensors = Mapping[str, "torch.Tensor"]


class TensorFile(Mapping[str, "torch.Tensor"]):
    """The tensors of one safetensors file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._specs = path, read_header(path)

    def __getitem__(self, name: str) -> "torch.Tensor":
        if name not in self._specs:
            raise KeyError(name)
        return read_tensor(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
