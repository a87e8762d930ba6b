"""Token rows for training: fixed-length sequences in memory-mapped shards, and ranges of them.

ROWS is a folder made by `tokenize`, ROWS:A:B its rows A to B-1; FILE.safetensors:NAME[:A:B] names
an integer tensor [rows, length] in the same way. Equal rows have equal digests in either form.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prunecli.errors import InputError
from prunecli.files import regular, sidecar
from prunecli.files.sidecar import Trained
from prunecli.files.tensorfile import INTEGERS, TENSOR_FILE, Spec, check_integers, read_header
from prunecli.interruption import safe_point

if TYPE_CHECKING:
    import numpy as np
    import torch

NAME = "rows"
CHUNK = 1 << 24  # ids hashed at once
MOST_SHARDS = 100_000
RANGE = re.compile(r"(?P<path>.+?)(:(?P<start>\d{0,18}):(?P<stop>\d{0,18}))?", re.DOTALL)


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"rows-{index:05}{TENSOR_FILE}"


class Digest:
    """The digest of rows: sha256 of their length and all ids as little-endian int32, in order."""

    def __init__(self, seq_len: int) -> None:
        self._sha = hashlib.sha256(f"rows {seq_len}\n".encode())
        self.max_id = -1
        self.min_id = 0

    def update(self, ids: "np.ndarray") -> None:
        """Add the next ids, an integer array of whole rows."""
        if ids.size:
            self.max_id = max(self.max_id, int(ids.max()))
            self.min_id = min(self.min_id, int(ids.min()))
            self._sha.update(ids.astype("<i4").tobytes())

    def hexdigest(self) -> str:
        """Return the digest of all ids so far."""
        return self._sha.hexdigest()


class _Outputs(sidecar.Part):
    digest: str


class _Results(sidecar.Part):
    shards: int = Field(ge=1, le=MOST_SHARDS)
    rows: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    max_id: int
    tokenizer: str | None


@dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a set of rows.

    Attributes:
        name: of the set, without its path.
        digest: of the whole set, whatever the range.
        seq_len: tokens per row.
        tokenizer: digest of the tokenizer that made them, None if unknown.
        min_id, max_id: bounds of the ids of the whole set.
    """

    name: str
    digest: str
    seq_len: int
    start: int
    stop: int
    tokenizer: str | None
    min_id: int
    max_id: int
    id: str | None = None
    _files: tuple[tuple[Path, str], ...] = ()
    _ends: tuple[int, ...] = ()
    _open: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def _slice(self, shard: int) -> Any:
        if shard not in self._open:
            from safetensors import safe_open

            path, name = self._files[shard]
            file: Any = safe_open(path, "np")
            self._open[shard] = file.get_slice(name)
        return self._open[shard]

    def read(self, indices: Sequence[int]) -> "torch.Tensor":
        """Return rows by their numbers in the whole set: int64 [rows, length].

        Raises InputError for ids beyond the bounds that are recorded of the set.
        """
        import numpy as np
        import torch

        rows = []
        for index in indices:
            shard = bisect_right(self._ends, index)
            before = self._ends[shard - 1] if shard else 0
            rows.append(self._slice(shard)[index - before : index - before + 1])
        ids = np.concatenate(rows).astype(np.int64)
        if ids.size and not self.min_id <= ids.min() <= ids.max() <= self.max_id:
            raise InputError(
                f"'{self.name}' has ids from {ids.min()} to {ids.max()}, recorded are "
                f"{self.min_id} to {self.max_id}",
                "make the rows again with `prunecli tokenize --force`",
            )
        return torch.from_numpy(ids)

    def scan(self) -> Digest:
        """Read the whole set once, whatever the range, and return its digest and bounds."""
        digest, begin = Digest(self.seq_len), 0
        step = max(1, CHUNK // self.seq_len)
        for shard, end in enumerate(self._ends):
            for start in range(0, end - begin, step):
                safe_point()
                digest.update(self._slice(shard)[start : min(start + step, end - begin)])
            begin = end
        return digest

    def trained(self, stop: int, count: int) -> Trained:
        """Return the record of training on rows start to stop-1, `count` tokens in all."""
        return Trained(rows=self.digest, range=(self.start, stop), count=count)


def split(data: str) -> tuple[str, int | None, int | None]:
    """Return the path, the first row and the end of ROWS[:A:B]; None for a bound left out."""
    match = RANGE.fullmatch(data)
    if match is None:
        raise InputError("no rows were named", "give the folder that `prunecli tokenize` made")
    start, stop = match["start"], match["stop"]
    return match["path"], int(start) if start else None, int(stop) if stop else None


def source_path(data: str) -> Path | None:
    """Return the file or folder of a source, None if it is a name or does not exist."""
    file, tensor, _ = data.partition(f"{TENSOR_FILE}:")
    path = Path(file + TENSOR_FILE if tensor else split(data)[0]) if data else None
    return path if path is not None and regular.exists(path) else None


def is_rows(data: str) -> bool:
    """Return whether `data` names a folder of rows, or an integer tensor in a file."""
    if data.endswith(TENSOR_FILE) or f"{TENSOR_FILE}:" in data:
        return True
    folder = Path(split(data)[0]) if data else None
    return folder is not None and regular.exists(folder) and (folder / shard_name(0)).is_file()


def is_ranged(data: str) -> bool:
    """Return whether `data` names a range of rows, or a folder, which is recorded with one."""
    return TENSOR_FILE not in data or split(data)[1:] != (None, None)


def open_rows(data: str) -> Rows:
    """Open ROWS[:A:B] or FILE.safetensors:NAME[:A:B]; raise InputError if it cannot be read."""
    path, start, stop = split(data)
    whole = _of_tensor(path) if TENSOR_FILE in path else _folder(path)
    total = whole.stop
    first = 0 if start is None else start
    last = total if stop is None else stop
    if not first < last <= total:
        raise InputError(
            f"'{data}' asks for rows {first}:{last}, the set has {total}",
            f"give a range within 0:{total}",
        )
    return replace(whole, start=first, stop=last)


def _folder(path: str) -> Rows:
    folder = Path(path)
    if not regular.is_dir(folder):
        raise InputError(f"no such rows: '{path}'", "make them with `prunecli tokenize`")
    record = sidecar.read(folder, ("rows",))
    files, ends, total = [], [], 0
    results = sidecar.part(path, record.results, _Results)
    for index in range(results.shards):
        file = folder / shard_name(index)
        if not file.exists():
            raise InputError(
                f"'{path}' lacks its shard {file.name}",
                "make the rows again with `prunecli tokenize --force`",
            )
        spec = read_header(regular.inside(folder, file)).get(NAME, Spec("", ()))
        is_row = len(spec.shape) == 2 and spec.shape[1] == results.seq_len
        if not is_row or spec.dtype not in INTEGERS:
            raise InputError(f"'{file}' has no rows of {results.seq_len} tokens")
        total += spec.shape[0]
        files.append((file, NAME))
        ends.append(total)
    if total != results.rows:
        raise InputError(f"'{path}' has {total} rows, its sidecar records {results.rows}")
    return Rows(
        folder.resolve().name,
        sidecar.part(path, record.outputs, _Outputs).digest,
        results.seq_len,
        0,
        total,
        results.tokenizer,
        0,
        results.max_id,
        record.id,
        tuple(files),
        tuple(ends),
    )


def _of_tensor(path: str) -> Rows:
    """Open an integer tensor as rows; its ids are read once, for their digest and bounds."""
    file, name, spec = check_integers(path)
    count, length = spec.shape
    whole = Rows(
        f"{file.name}:{name}",
        "",
        length,
        0,
        count,
        None,
        0,
        0,
        None,
        ((file, name),),
        (count,),
    )
    digest = whole.scan()
    return replace(whole, digest=digest.hexdigest(), min_id=digest.min_id, max_id=digest.max_id)
