"""Writing token rows: text in pieces, through a tokenizer in several processes, into shards.

What is written depends on text and tokenizer alone, not on how many processes there are or how
often the work was interrupted.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prunecli.errors import InputError
from prunecli.io.output import replace_bytes, replace_text
from prunecli.io.records import Reading
from prunecli.io.rows import NAME, Digest, shard_name
from prunecli.io.tokenizer import Tokenizer
from prunecli.report import Report

if TYPE_CHECKING:
    import numpy as np

PIECE = 1 << 18  # characters: longer documents are encoded in pieces, cut at line ends
BATCH = 1 << 20  # characters that a process takes at once
STATE = "state.json"
NARROW = 1 << 16  # vocabularies below are stored in two bytes a token

# one text, and whether it ends its document
Piece = tuple[str, bool]


def pieces(documents: Iterable[str]) -> Iterator[Piece]:
    """Cut documents into pieces of at most `PIECE` characters, at line ends where there are any."""
    for text in documents:
        start = 0
        while len(text) - start > PIECE:
            end = text.rfind("\n", start, start + PIECE) + 1
            end = end if end > start else start + PIECE
            yield text[start:end], False
            start = end
        yield text[start:], True


def _batches(found: Iterable[Piece], taken: Callable[[Piece], None]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in found:
        taken(piece)
        batch.append(piece)
        size += len(piece[0]) + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_encode: Callable[[list[Piece]], "np.ndarray"]


def _start(folder: str, separator: int | None) -> None:
    """Prepare a process for encoding."""
    global _encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encode = encoder(folder, separator)


def _work(batch: list[Piece]) -> "np.ndarray":
    return _encode(batch)


def encoder(folder: str, separator: int | None) -> Callable[[list[Piece]], "np.ndarray"]:
    """Return a function from pieces to their ids, int32 [tokens], documents separated."""
    import numpy as np

    tokenizer = Tokenizer(folder)

    def encode(batch: list[Piece]) -> "np.ndarray":
        ids: list[int] = []
        for found, (_, ends) in zip(
            tokenizer.encode_plain([text for text, _ in batch]), batch, strict=True
        ):
            ids += found
            if ends and separator is not None:
                ids.append(separator)
        return np.array(ids, dtype=np.int32)

    return encode


def encoded(
    batches: Iterator[list[Piece]], folder: str, separator: int | None, workers: int
) -> "Generator[np.ndarray, None, None]":
    """Yield the ids of each batch, in order; processes are only started for more than a few."""
    first = list(islice(batches, 2 * workers))
    if workers == 1 or len(first) < 2 * workers:
        encode = encoder(folder, separator)
        for batch in first:
            yield encode(batch)
        for batch in batches:
            yield encode(batch)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start, initargs=(folder, separator)
    ) as pool:
        waiting: deque[Future[np.ndarray]] = deque(pool.submit(_work, batch) for batch in first)
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_work, batch) for batch in islice(batches, 1))
        finally:
            for future in waiting:
                future.cancel()


class Shards:
    """Takes ids as they come and writes rows; every full shard is on disk at once.

    Attributes:
        rows: written so far. count: of shards. digest: of all written ids.
    """

    def __init__(
        self, folder: Path, seq_len: int, shard_rows: int, most_rows: int | None, vocab: int
    ) -> None:
        import numpy as np

        self.folder, self.seq_len, self.shard_rows = folder, seq_len, shard_rows
        self.most_rows = most_rows
        self.dtype = "<u2" if vocab <= NARROW else "<i4"
        self.rows, self.count, self.digest = 0, 0, Digest(seq_len)
        self.rest = np.empty(0, np.int32)

    def reopen(self, count: int) -> None:
        """Count the shards that are finished."""
        from safetensors.numpy import load_file

        for index in range(count):
            ids = load_file(self.folder / shard_name(index))[NAME]
            self.digest.update(ids)
            self.rows += len(ids)
        self.count = count

    @property
    def full(self) -> bool:
        """Whether there are as many rows as were asked for, waiting ones included."""
        waiting = self.rows + len(self.rest) // self.seq_len
        return self.most_rows is not None and waiting >= self.most_rows

    def add(self, ids: "np.ndarray") -> bool:
        """Take ids; return whether that finished a shard."""
        import numpy as np

        self.rest, before = np.concatenate([self.rest, ids]), self.count
        while len(self.rest) >= self.shard_rows * self.seq_len and self.rows != self.most_rows:
            self._flush(self.shard_rows)
        return self.count > before

    def finish(self) -> None:
        """Write what waits, without the incomplete row at the end."""
        if size := len(self.rest) // self.seq_len:
            self._flush(size)

    def _flush(self, size: int) -> None:
        from safetensors.numpy import save

        if self.most_rows is not None:
            size = min(size, self.most_rows - self.rows)
        used = size * self.seq_len
        ids, self.rest = self.rest[:used].reshape(size, self.seq_len), self.rest[used:]
        if size:
            replace_bytes(
                self.folder / shard_name(self.count), save({NAME: ids.astype(self.dtype)})
            )
            self.digest.update(ids)
            self.rows, self.count = self.rows + size, self.count + 1


def write(
    shards: Shards,
    documents: Iterable[str],
    tokenizer: str,
    separator: int | None,
    workers: int,
    report: Report,
    reading: Reading,
) -> tuple[str, int]:
    """Write all rows, going on after the shards that a stopped run has finished.

    Returns the sha256 of the text in them, and how many bad lines `reading` met in it. Raises
    InputError if the text before the end of the finished shards is not what it was.
    """
    sha = hashlib.sha256()

    def taken(piece: Piece) -> None:
        sha.update(piece[0].encode("utf-8", "surrogatepass") + (b"\0" if piece[1] else b""))

    batches = _batches(pieces(documents), taken)
    file = shards.folder / STATE
    # of the finished shards: how many, whole batches in them, and tokens of the batch after those
    done, used = 0, 0
    if file.exists():
        state = json.loads(file.read_text("utf-8"))
        shards.reopen(state["shards"])
        report.note(f"resuming after {shards.count} finished shards ({shards.rows} rows)")
        done, used = state["batches"], state["used"]
        for _ in range(done):
            next(batches, None)
        if sha.hexdigest() != state["text"]:
            raise InputError("the text has changed since this run began", "use --restart")
    met: deque[tuple[str, int]] = deque([(sha.hexdigest(), reading.skipped)])

    def remembered() -> Iterator[list[Piece]]:
        # processes run ahead of what is written: remember what was met at each batch
        for batch in batches:
            met.append((sha.hexdigest(), reading.skipped))
            yield batch

    stream = encoded(remembered(), tokenizer, separator, workers)
    start, tokens = perf_counter(), 0
    for ids in report.track(stream, "tokenizing", unit="batches"):
        if shards.add(ids[used:]):
            # what waits now is the end of these very ids
            state = {
                "shards": shards.count,
                "batches": done,
                "used": len(ids) - len(shards.rest),
                "text": met[0][0],
            }
            replace_text(file, json.dumps(state))
        met.popleft()
        done, used = done + 1, 0
        tokens += len(ids)
        report.live(f"{tokens} tokens, {tokens / (perf_counter() - start):.0f} tokens/s")
        if shards.full:
            break
    else:
        met[0] = sha.hexdigest(), reading.skipped  # bad lines after the last document too
    stream.close()
    shards.finish()
    return met[0]
