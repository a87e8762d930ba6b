"""Text in local files: .txt (one document each), .jsonl, .json and .parquet (one a row or line).

Each may be compressed (.gz, .zst). A folder's files are read in the order of their paths, each only
when its turn comes; what is not read in it is reported, except for hidden names.
"""

import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from prunecli import limits
from prunecli.data.records import (
    BYTES,
    DEFAULT,
    STRING,
    Reading,
    choose,
    column_texts,
    decode_error,
    first_line,
    texts,
)
from prunecli.errors import InputError, UsageError
from prunecli.files import regular, scratch, strict

FORMATS, CODECS = (".jsonl", ".json", ".parquet", ".txt"), (".gz", ".zst")


EXPECTED = f"expected {', '.join(FORMATS)}, plain, {' or '.join(CODECS)}"


# bytes held at once, so that no small compressed file fills the memory
LARGEST_TEXT = 1 << 27  # a .txt, a line, or an array of JSON
LARGEST_FILE = 1 << 32  # (on disk) a compressed .parquet
PARQUET_MEMORY = 1 << 30  # that the library may take, whatever sizes a file claims
PIECE = 1 << 20
UNPACKED = 1 << 26  # of a compressed file, whatever its size; beyond it is held against the size
EXPANSION = 200  # how many times its size a compressed file may unpack to
PARQUET_BATCH = 1 << 24  # of rows, about
PARQUET_ROWS = 64
BOM = b"\xef\xbb\xbf"
LFS = b"version https://git-lfs.github.com/spec/"
SHOWN = 5


def documents(path: Path, reading: Reading) -> Iterator[str]:
    """Return the documents of an existing file or folder.

    Raises InputError at once if there is nothing to read or the first document cannot be, and while
    reading for what comes later.
    """
    files, others = _found(path)
    if reading.column and all(format_of(file)[0] == ".txt" for file in files):
        raise UsageError(f"--text-column '{reading.column}': '{path}' has no columns")
    if others:
        named = ", ".join(file.relative_to(path).as_posix() for file in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        reading.report.info(f"not read as text in '{path}': {named}{more}")
    found = (document for file in files for document in _read(file, reading))
    return chain(list(islice(found, 1)), found)


def size(path: Path) -> int:
    """Return the bytes of all files that `documents` would read."""
    return sum(file.stat().st_size for file in _found(path)[0])


def format_of(path: Path) -> tuple[str, str]:
    """Return format and compression by the name of a file, '' for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = suffixes.pop() if suffixes and suffixes[-1] in CODECS else ""
    known = suffixes and suffixes[-1] in FORMATS
    return (suffixes[-1], codec) if known else ("", "")


def _found(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files to read, in order, and the others; raise InputError for none to read."""
    if not regular.is_dir(path):
        if not format_of(path)[0]:
            raise InputError(
                f"cannot read '{path}' as text: {EXPECTED}",
                "or FILE.safetensors:NAME for token ids",
            )
        if not regular.is_file(path):
            raise InputError(f"'{path}' is no regular file", "write the text into a file first")
        return [path], []
    try:
        entries = sorted(_below(path), key=lambda entry: entry.relative_to(path).as_posix())
        files = [entry for entry in entries if format_of(entry)[0] and entry.is_file()]
    except OSError as error:
        raise InputError(f"cannot read '{error.filename or path}': {error.strerror}") from None
    read = set(files)
    others = [entry for entry in entries if entry not in read]
    for entry in others:
        if format_of(entry)[0] and entry.is_symlink() and not entry.exists():
            raise InputError(f"'{entry}' is a link to a file that does not exist")
    if not files:
        raise InputError(f"'{path}' has no text: {EXPECTED}")
    return files, others


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in folders below it, without hidden names.

    Links are followed, but no folder is opened twice: one reached again is yielded itself.
    """
    seen, waiting = {folder.resolve()}, deque([folder])
    while waiting:
        # of a folder and a link to it beside it, the folder is opened
        for entry in sorted(waiting.popleft().iterdir(), key=lambda e: (e.is_symlink(), e.name)):
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and (real := entry.resolve()) not in seen:
                seen.add(real)
                waiting.append(entry)
            else:
                yield entry


def _read(path: Path, reading: Reading) -> Iterator[str]:
    kind, codec = format_of(path)
    try:
        if kind == ".txt":
            yield from _text(path, codec, reading)
        elif kind == ".parquet":
            yield from _parquet(path, codec, reading)
        else:
            rows = _whole(path, codec, reading) if kind == ".json" else None
            yield from texts(_lines(path, codec, reading) if rows is None else rows, reading)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None)
        if codec and "requires too much memory" in str(error):
            raise InputError(
                f"'{path}' was compressed with a window too large to unpack as it is read",
                "compress it again: zstd -d --long=31 -c FILE | zstd -o NEW.zst",
            ) from None
        if codec and not why:
            raise InputError(
                f"cannot unpack '{path}': truncated, damaged, or not in {codec} format",
                "download it again",
            ) from None
        raise InputError(f"cannot read '{path}': {why or first_line(error)}") from None


@contextmanager
def _opened(path: Path, codec: str) -> Iterator[Any]:
    """Open a file for reading, decompressed as it is read."""
    with path.open("rb") as raw:
        head = raw.peek(len(LFS))
        if head.startswith(LFS):
            raise InputError(f"'{path}' is a pointer of Git LFS, not the file", "run: git lfs pull")
        if codec and not head:
            raise InputError(f"'{path}' is empty, not a {codec} file", "download it again")
        if codec == ".gz":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(_Unpacked(path, unpacked, raw), PIECE)
        elif codec == ".zst":
            with unzstd(raw) as unpacked:
                yield io.BufferedReader(_Unpacked(path, unpacked, raw), PIECE)
        else:
            yield raw


class _Unpacked(io.RawIOBase):
    """What a compressed file unpacks to, up to where that is too much for what was read of it."""

    def __init__(self, path: Path, unpacked: io.BufferedIOBase, packed: IO[bytes]) -> None:
        self._path, self._unpacked, self._packed, self._size = path, unpacked, packed, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer; raise InputError for too many."""
        content = self._unpacked.read(len(buffer))
        buffer[: len(content)] = content
        self._size += len(content)
        _check_expansion(self._path, self._size, self._packed.tell())
        return len(content)


def _check_expansion(path: Path, unpacked: int, packed: int) -> None:
    """Raise InputError where so many bytes came out of so few."""
    if unpacked > UNPACKED and unpacked > EXPANSION * packed:
        raise InputError(
            f"'{path}' unpacks to more than {EXPANSION} times its size, which no text does",
            "unpack it first, if it is as it should be",
        )


def unzstd(raw: Any, **_: Any) -> io.BufferedReader:
    """Return the content of a file compressed by zstd, all frames of it, as a file to read."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


def _at_most(limit: int, stream: IO[bytes]) -> bytearray:
    """Return the rest of a stream, but at most one piece more than `limit` bytes."""
    content = bytearray()
    # piece by piece, since one read of so many bytes would reserve memory for all of them
    while len(content) <= limit and (piece := stream.read(PIECE)):
        content += piece
    return content


def _text(path: Path, codec: str, reading: Reading) -> Iterator[str]:
    with _opened(path, codec) as stream:
        content = _at_most(LARGEST_TEXT, stream)
    if len(content) > LARGEST_TEXT:
        raise InputError(
            f"'{path}' is one document of more than {LARGEST_TEXT >> 20} MiB",
            "split it into files, or write a document a line as JSON lines",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reading.bad(f"'{path}' is not UTF-8 text: {decode_error(error)}", "convert it")
    else:
        yield text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path, codec: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of JSON lines and where they are. Any may begin with a byte order mark."""
    with _opened(path, codec) as stream:
        number = 0
        while line := stream.readline(LARGEST_TEXT + 1):
            number += 1
            where = f"line {number} of '{path}'"
            if len(line) > LARGEST_TEXT:
                raise InputError(
                    f"{where} is longer than {LARGEST_TEXT >> 20} MiB",
                    "write each document in a line of its own",
                )
            if not line.removeprefix(BOM).strip():
                continue
            try:
                row = _parsed(line.rstrip(b"\r\n"))
            except ValueError as error:
                reading.bad(f"{where} is not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                reading.bad(f"{where} is no JSON object", 'expected {"text": "..."}')


def _whole(path: Path, codec: str, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Return the objects of a .json file that is one array or one object; None if it is lines.

    A single object may as well be metadata as a document, so its text column is not guessed.
    """
    with _opened(path, codec) as stream:
        start = stream.readline(LARGEST_TEXT)
        while start and not start.strip():
            start = stream.readline(LARGEST_TEXT)
        try:
            if isinstance(value := _parsed(start), dict):
                more = any(piece.strip() for piece in iter(lambda: stream.read(PIECE), b""))
                return None if more else _alone(path, value, reading)
        except ValueError:
            pass  # the first line of many, or a bad one
        content = start + _at_most(LARGEST_TEXT - len(start), stream)
    array = content.removeprefix(BOM).lstrip().startswith(b"[")
    if len(content) > LARGEST_TEXT:
        if array:
            raise InputError(
                f"'{path}' is one array of more than {LARGEST_TEXT >> 20} MiB",
                "write it as JSON lines",
            )
        return None
    try:
        value = _parsed(content)
    except ValueError as error:
        if array:
            raise InputError(f"'{path}' is not JSON: {error}") from None
        return None
    if isinstance(value, dict):
        return _alone(path, value, reading)
    return _items(path, value, reading) if array else None


def _alone(
    path: Path, value: dict[str, Any], reading: Reading
) -> Iterator[tuple[str, dict[str, Any]]]:
    if reading.column is None and DEFAULT not in value:
        names = ", ".join(value) or "nothing"
        reading.bad(
            f"'{path}' is one object without '{DEFAULT}': it has {names}",
            "name the key of the text with --text-column, or remove the file",
        )
    else:
        yield f"'{path}'", value


def _items(path: Path, values: list[Any], reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, value in enumerate(values, 1):
        where = f"item {number} of '{path}'"
        if isinstance(value, dict):
            yield where, value
        else:
            reading.bad(f"{where} is no JSON object", 'expected {"text": "..."}')


def _parsed(content: bytes | bytearray) -> Any:
    """Return the value of UTF-8 JSON; raise ValueError, with a message for users, if it is none."""
    if sum(map(content.count, (b",", b"[", b"{"))) > strict.MAX_VALUES:
        raise ValueError(f"it has more than {strict.MAX_VALUES} values")
    try:
        return json.loads(content.removeprefix(BOM).decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8, {decode_error(error)}") from None
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        what = error.msg.removesuffix(" at")
        raise ValueError(f"{what} at character {error.colno}{line}") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parquet(path: Path, codec: str, reading: Reading) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with _seekable(path, codec) as content, parquet.ParquetFile(content) as file:
            kinds = {field.name: _kind(field.type) for field in file.schema_arrow}
            if len(kinds) < len(file.schema_arrow):
                raise InputError(f"'{path}' has two columns of one name")
            column = choose(kinds, reading.column, f"'{path}'")
            if column not in (reading.column, DEFAULT):
                reading.guessed(column, f"'{path}'")
            values = enumerate(_column(path, content, file, column), 1)
            located = ((f"row {n} of '{path}'", value) for n, value in values)
            yield from column_texts(located, column, reading)
    except MemoryError:
        raise InputError(
            f"'{path}' needs more than {PARQUET_MEMORY >> 30} GiB for a few rows",
            "write it again, with smaller pages and row groups",
        ) from None
    except pyarrow.ArrowException as error:
        raise InputError(f"'{path}' is not a valid parquet file: {first_line(error)}") from None


def _column(path: Path, content: IO[bytes], file: Any, column: str) -> Iterator[Any]:
    """Yield what a column of a parquet file holds, a few rows at a time.

    A value that many rows share is stored once, and read once: only then is the size of what is
    stored that of what is read. Raises InputError where it is too much for the size of the file.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    # others reserve a gigabyte at once, within which no limit is felt
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    metadata = file.metadata
    chunks = [
        chunk
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for chunk in map(group.column, range(metadata.num_columns))
        if chunk.path_in_schema == column
    ]
    stored = sum(chunk.total_uncompressed_size for chunk in chunks)
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    _check_expansion(path, stored, packed)
    rows = min(max(PARQUET_BATCH * metadata.num_rows // max(stored, 1), 1), PARQUET_ROWS)
    size = 0
    with parquet.ParquetFile(
        content, metadata=metadata, read_dictionary=[column], buffer_size=PIECE
    ) as shared:
        batches = shared.iter_batches(columns=[column], batch_size=rows, use_threads=False)
        while True:
            with limits.memory(PARQUET_MEMORY):
                batch = next(batches, None)
            if batch is None:
                return
            for cell in batch.column(column):
                value = _value(cell)
                size += len(value) if isinstance(value, str | bytes) else 0
                _check_expansion(path, size, packed)
                yield value


def _value(cell: Any) -> Any:
    """Return what a cell holds; a string as bytes where it is not UTF-8."""
    import pyarrow

    cell = getattr(cell, "value", cell)
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        # neither writers nor readers of parquet check that strings are UTF-8
        return cell.cast(pyarrow.large_binary()).as_py()


@contextmanager
def _seekable(path: Path, codec: str) -> Iterator[IO[bytes]]:
    """Open a file for random access; a compressed one is unpacked on disk."""
    with _opened(path, codec) as stream:
        if not codec:
            yield stream
            return
        with scratch.file() as copy:
            while part := stream.read(PIECE):
                if copy.tell() + len(part) > LARGEST_FILE:
                    raise InputError(
                        f"'{path}' unpacks to more than {LARGEST_FILE >> 30} GiB", "unpack it first"
                    )
                with scratch.told():
                    copy.write(part)
            with scratch.told():
                copy.seek(0)
            yield copy


def _kind(kind: Any) -> str:
    """Return what a column of this Arrow type holds."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return STRING
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return BYTES
    return str(kind)
