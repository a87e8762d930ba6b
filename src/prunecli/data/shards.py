"""Writing token rows: text in pieces, through a tokenizer in several processes, into shards.

What is written depends on text and tokenizer alone, not on the number of processes or on
interruptions.
"""

import hashlib
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from prunecli.data.records import Reading
from prunecli.data.rows import MOST_SHARDS, NAME, Digest, shard_name
from prunecli.data.tokenizer import Tokenizer
from prunecli.errors import InputError, PruneError
from prunecli.files import keeping, unfinished
from prunecli.files.output import replace_bytes
from prunecli.files.sidecar import Part
from prunecli.files.tensorfile import Spec, read_header
from prunecli.report import Report

if TYPE_CHECKING:
    import numpy as np
PIECE = 1 << 18  # characters: longer documents are encoded in pieces
CONTEXT = 1 << 12  # characters around a piece that are encoded with it
BATCH = 1 << 20  # characters that a process takes at once
NO_TEXT = hashlib.sha256().hexdigest()  # the digest of a source without text
STATE = "state.json"
NARROW = 1 << 16  # vocabularies below are stored in two bytes a token
STORED = {"<u2": "U16", "<i4": "I32"}


class Piece(NamedTuple):
    """A document, or a part of one: characters `start` to `stop` of `text`, the rest is context."""

    text: str
    start: int
    stop: int
    first: bool = True
    last: bool = True

    @property
    def own(self) -> str:
        """Its own text, without the context."""
        return self.text[self.start : self.stop]


# where to cut a text; where the context of the piece after begins, and that of the one before ends
Cut = tuple[int, int, int]


def pieces(documents: Iterable[str], cut: "Callable[[str, int], Cut | None]") -> Iterator[Piece]:
    """Cut documents into pieces of about `PIECE` characters; those without text are left out.

    `cut(text, at)` finds a position near character `at` or beyond, None where there is none.
    """
    for text in documents:
        if not text.strip():
            continue
        start = begin = 0
        while (positions := cut(text, start + PIECE)) is not None:
            end, next_begin, context_end = positions
            yield Piece(text[begin:context_end], start - begin, end - begin, not start, False)
            start, begin = end, next_begin
        yield Piece(text[begin:], start - begin, len(text) - begin, not start, True)


def at_lines(text: str, at: int) -> Cut | None:
    """Cut after the last end of line before `at`; for pieces that need no common encoding."""
    if len(text) <= at:
        return None
    end = text.rfind("\n", at - PIECE, at) + 1 or at
    return end, end, end


class Exact:
    """Finds where a long text can be cut so that its pieces have the tokens of the whole.

    Near the ends of a piece a tokenizer can find other tokens than in the whole text: it may put a
    space in front, and join or split characters by what follows them. So pieces are encoded with
    the text around them, and a cut is only made between two tokens where the text up to `CONTEXT`
    characters after it and the text from `CONTEXT` characters before it give the same tokens for a
    quarter of that on both sides; and only between characters of two kinds (letters, digits,
    spaces, others), since tokens within a run of one kind can depend on the whole run. Where there
    is no such position the piece extends to the next, if need be to the end of the document.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, at: int) -> Cut | None:
        """Return a cut near `at` or beyond it, None if there is none before the text ends."""
        if not self.tokenizer.places:
            return None
        while len(text) - at > 2 * CONTEXT:
            low, high = max(0, at - CONTEXT), at + CONTEXT
            before = self._tokens(text, low - CONTEXT, high)
            after = self._tokens(text, low, high + CONTEXT)
            positions = range(at - CONTEXT // 2, at + CONTEXT // 2)
            for end in sorted(positions, key=lambda end: abs(end - at)):
                if _kind(text[end - 1]) != _kind(text[end]) and _agree(before, after, end):
                    return end, low, high
            at += CONTEXT
        return None

    def _tokens(self, text: str, start: int, stop: int) -> "tuple[np.ndarray, np.ndarray]":
        start = max(start, 0)
        ids, spans = self.tokenizer.placed(text[start:stop])
        return ids, spans + start


def _kind(character: str) -> tuple[bool, bool, bool]:
    return character.isspace(), character.isalpha(), character.isnumeric()


def _agree(
    one: "tuple[np.ndarray, np.ndarray]", other: "tuple[np.ndarray, np.ndarray]", end: int
) -> bool:
    """Return whether two encodings have the same tokens on both sides of a character."""
    import numpy as np

    near: list[np.ndarray] = []
    for ids, spans in (one, other):
        count = divided(spans, end)
        if count is None:
            return False
        for side in (slice(0, count), slice(count, None)):
            around = (spans[side, 1] > end - CONTEXT // 4) & (spans[side, 0] < end + CONTEXT // 4)
            near.append(np.column_stack([ids[side], spans[side]])[around])
    return np.array_equal(near[0], near[2]) and np.array_equal(near[1], near[3])


def divided(spans: "np.ndarray", end: int) -> int | None:
    """Return how many tokens end before character `end`, None where that is ambiguous.

    `spans` [tokens, 2] are the characters of each token. It is ambiguous if `end` is inside a
    token, or if one without characters is at `end`, as a space put in front is.
    """
    import numpy as np

    count = int(np.count_nonzero(spans[:, 1] <= end))
    after = spans[count:]
    empty = ((spans[:, 0] == end) & (spans[:, 1] == end)).any()
    clear = (spans[:count, 1] <= end).all() and (after[:, 0] >= end).all()
    return count if clear and not empty else None


def _batches(pieces: Iterable[Piece], on_piece: Callable[[Piece], None]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        on_piece(piece)
        batch.append(piece)
        size += piece.stop - piece.start + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class Encoding:
    """How documents become ids: a tokenizer's folder, and the ids before and after each.

    `special_tokens`: what those that are spelled out in a document become (data/tokenizer.py).
    """

    folder: str
    special_tokens: str
    front: list[int]
    separator: int | None


_encode: Callable[[list[Piece]], "np.ndarray"]


def _start(encoding: Encoding) -> None:
    """Prepare a process for encoding."""
    global _encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encode = encoder(encoding)


def _work(batch: list[Piece]) -> "np.ndarray":
    return _encode(batch)


def encoder(encoding: Encoding) -> Callable[[list[Piece]], "np.ndarray"]:
    """Return a function from pieces to their ids, int32 [tokens], documents separated."""
    import numpy as np

    tokenizer = Tokenizer(encoding.folder, encoding.special_tokens)
    end = [] if encoding.separator is None else [encoding.separator]

    def part(piece: Piece) -> list[int]:
        tokens, spans = tokenizer.placed(piece.text)
        start = 0 if piece.first else divided(spans, piece.start)
        stop = len(tokens) if piece.last else divided(spans, piece.stop)
        if start is None or stop is None:
            raise PruneError("a long document has other tokens in its pieces than as a whole")
        return [*encoding.front * piece.first, *tokens[start:stop], *end * piece.last]

    def encode(batch: list[Piece]) -> "np.ndarray":
        whole = iter(tokenizer.encode_all([p.text for p in batch if p.first and p.last]))
        ids: list[int] = []
        for piece in batch:
            if not (piece.first and piece.last):
                ids += part(piece)
            elif own := next(whole):
                # a document may consist of characters that the tokenizer drops
                ids += [*encoding.front, *own, *end]
        return np.array(ids, dtype=np.int32)

    return encode


def _caught(batches: Iterator[list[Piece]]) -> Iterator[list[Piece] | Exception]:
    """Yield batches, and an error where one cannot be read."""
    try:
        yield from batches
    except Exception as error:
        yield error


def encoded(
    batches: Iterator[list[Piece]], encoding: Encoding, workers: int
) -> "Generator[np.ndarray, None, None]":
    """Yield the ids of each batch, in order; processes are only started for more than a few.

    Batches are read ahead, but an error in reading is raised in its turn: whether it is reached
    does not depend on the number of processes.
    """
    caught = _caught(batches)
    first = list(islice(caught, 2 * workers))
    if workers == 1 or len(first) < 2 * workers:
        encode = encoder(encoding)
        for batch in chain(first, caught):
            if isinstance(batch, Exception):
                raise batch
            yield encode(batch)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start, initargs=(encoding,)
    ) as pool:

        def submitted(batch: list[Piece] | Exception) -> "Future[np.ndarray]":
            if not isinstance(batch, Exception):
                return pool.submit(_work, batch)
            failed: Future[np.ndarray] = Future()
            failed.set_exception(batch)
            return failed

        with _no_signals():
            # the first starts the processes
            waiting = deque(submitted(batch) for batch in first)
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(submitted(batch) for batch in islice(caught, 1))
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Start processes that a terminal's Ctrl-C does not reach: they end when this one stops."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def token_bytes(vocab: int) -> int:
    """Return how many bytes a token of such a vocabulary takes in a shard."""
    return 2 if vocab <= NARROW else 4


class Shards:
    """Takes ids as they come and writes rows; every full shard goes to disk at once.

    Attributes:
        rows: how many are written. count: how many shards. digest: of all written ids.
    """

    def __init__(
        self, folder: Path, seq_len: int, shard_rows: int, most_rows: int | None, vocab: int
    ) -> None:
        import numpy as np

        self.folder, self.seq_len, self.shard_rows = folder, seq_len, shard_rows
        self.most_rows = most_rows
        self.dtype = {2: "<u2", 4: "<i4"}[token_bytes(vocab)]
        self.rows, self.count, self.digest = 0, 0, Digest(seq_len)
        self.rest = np.empty(0, np.int32)

    def reopen(self, count: int) -> None:
        """Count the shards that are finished; raise InputError where one is not of these rows."""
        from safetensors.numpy import load_file

        for index in range(count):
            file = self.folder / shard_name(index)
            if not file.exists():
                raise unfinished.damaged(file, "it is gone")
            with unfinished.refusals():
                spec = read_header(file).get(NAME, Spec("", ()))
            rows = spec.shape[0] if spec.shape else 0
            # the last of a set may have fewer
            fits = rows == self.shard_rows or (index == count - 1 and 0 < rows < self.shard_rows)
            if not fits or spec != Spec(STORED[self.dtype], (rows, self.seq_len)):
                raise unfinished.damaged(file, f"it holds no rows of {self.seq_len} ids")
            ids = load_file(file)[NAME]
            self.digest.update(ids)
            self.rows += len(ids)
        self.count = count

    @property
    def full(self) -> bool:
        """Whether there are as many rows as were asked for, unwritten ones included."""
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
        """Write what is left, without the incomplete row at the end."""
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


class _State(Part):
    """The finished shards, the digest of their rows, and where in which text they end."""

    shards: int = Field(ge=0, le=MOST_SHARDS)
    batches: int = Field(ge=0, lt=1 << 53)
    used: int = Field(ge=0)
    text: str
    digest: str


class _Reader:
    """Batches of pieces, and what was met up to each: processes read ahead of what is written.

    Attributes:
        met: for batches that are not written yet, the sha256 of the text before each, and the bad
            lines in it.
    """

    def __init__(self, pieces: Iterable[Piece], reading: Reading) -> None:
        self._sha, self._reading = hashlib.sha256(), reading
        self._batches = _batches(pieces, self._update)
        self.met: deque[tuple[str, int]] = deque()

    def _update(self, piece: Piece) -> None:
        self._sha.update(piece.own.encode("utf-8", "surrogatepass") + b"\0" * piece.last)

    @property
    def now(self) -> tuple[str, int]:
        """The sha256 of all text that was read, and its bad lines."""
        return self._sha.hexdigest(), self._reading.skipped

    def skip(self, batches: int) -> None:
        """Read batches that are in finished shards."""
        deque(islice(self._batches, batches), maxlen=0)

    def batches(self) -> Iterator[list[Piece]]:
        """Yield the batches that are left."""
        self.met.append(self.now)
        for batch in self._batches:
            self.met.append(self.now)
            yield batch


def write(
    shards: Shards,
    pieces: Iterable[Piece],
    encoding: Encoding,
    workers: int,
    report: Report,
    reading: Reading,
) -> tuple[str, int]:
    """Write all rows, resuming after the shards that a stopped run has finished.

    Returns the sha256 of the text in them, and how many bad lines `reading` met in it. Raises
    InputError if the text in the finished shards is not what it was.
    """
    reader, file = _Reader(pieces, reading), shards.folder / STATE
    # of the finished shards: whole batches in them, and tokens of the batch after those
    done, used = _resume(shards, reader, file, report) if file.exists() else (0, 0)
    stream = encoded(reader.batches(), encoding, workers)
    start, tokens = perf_counter(), 0
    for ids in report.progress(stream, "tokenizing", unit="batches"):
        if shards.add(ids[used:]):
            # what is not written yet is the end of these very ids
            state = {
                "shards": shards.count,
                "batches": done,
                "used": len(ids) - len(shards.rest),
                "text": reader.met[0][0],
                "digest": shards.digest.hexdigest(),
            }
            keeping.keep(file, state)
        reader.met.popleft()
        done, used = done + 1, 0
        tokens += len(ids)
        report.status(f"{tokens} tokens, {tokens / (perf_counter() - start):.0f} tokens/s")
        if shards.full:
            break
    else:
        reader.met[0] = reader.now  # bad lines after the last document too
    stream.close()
    shards.finish()
    return reader.met[0]


def _resume(shards: Shards, reader: _Reader, file: Path, report: Report) -> tuple[int, int]:
    """Count what the state in `file` says is finished; return its batches, and tokens beyond."""
    state: _State = keeping.kept(file, _State)
    shards.reopen(state.shards)
    if state.digest != shards.digest.hexdigest():
        raise unfinished.damaged(file, "the rows are not those that it describes")
    report.info(f"resuming after {shards.count} finished shards ({shards.rows} rows)")
    reader.skip(state.batches)
    if reader.now[0] != state.text:
        raise InputError("the text has changed since this run began", "use --restart")
    return state.batches, state.used
