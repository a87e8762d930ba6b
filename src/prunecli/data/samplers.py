"""Samplers: how windows of equal length are drawn from documents.

Each takes documents, a function from text to token ids, a count and a length in tokens, and a seed;
it returns `count` windows (`concat-contiguous`: as many as there are) and what they were cut from.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from prunecli.errors import InputError, UsageError, suggest

if TYPE_CHECKING:
    import numpy as np
Encode = Callable[[str], "np.ndarray"]


# `docs` gives up after so many documents in a row that are too short: with 1 in 1000 long enough,
# as of C4 at 8192 tokens, this many misses have a chance of e^-50
MAX_MISSES = 50_000


# tokens gathered beyond those needed, since more text could change the last few
MARGIN = 256
CHARS_PER_TOKEN = 5


class Samples(NamedTuple):
    """Windows, each an integer array [length], and the sha256 of the text they came from."""

    rows: "list[np.ndarray]"
    text: str


Sampler = Callable[[Iterable[str], Encode, int, int, int], Samples]


def docs(documents: Iterable[str], encode: Encode, count: int, length: int, seed: int) -> Samples:
    """One random window of a random document, documents of at most `length` tokens drawn again.

    The sampler of GPTQ, SparseGPT and Wanda for C4, draw by draw; so the last possible window of a
    document is never drawn. Raises InputError when no document is long enough.
    """
    texts = documents if isinstance(documents, Sequence) else list(documents)
    draw, sha = random.Random(seed), sha256()
    long: dict[int, np.ndarray] = {}
    short: set[int] = set()
    rows: list[np.ndarray] = []
    misses = 0
    while len(rows) < count:
        if len(short) == len(texts) or misses == MAX_MISSES:
            raise InputError(
                f"no document of {len(short)} has more than {length} tokens, which 'docs' needs",
                "use --sampler concat-contiguous, or a smaller --seq-len",
            )
        index = draw.randint(0, len(texts) - 1)
        if index not in short and index not in long:
            ids = encode(texts[index])
            if len(ids) > length:
                long[index] = ids
            else:
                short.add(index)
        if index in short:
            misses += 1
            continue
        misses = 0
        start = draw.randint(0, len(long[index]) - length - 1)
        rows.append(long[index][start : start + length])
        sha.update(texts[index].encode("utf-8", "surrogatepass"))
    return Samples(rows, sha.hexdigest())


def concat_random(
    documents: Iterable[str], encode: Encode, count: int, length: int, seed: int
) -> Samples:
    """Random windows of all documents joined by a space, tokenised once.

    The sampler of SparseGPT, Wanda and FLAP for WikiText-2. Raises InputError if too short.
    """
    text = " ".join(documents)
    ids = encode(text)
    if len(ids) <= length:
        raise InputError(
            f"the text has {len(ids)} tokens, expected more than {length}",
            "give more text or a smaller --seq-len",
        )
    draw = random.Random(seed)
    starts = [draw.randint(0, len(ids) - length - 1) for _ in range(count)]
    return Samples([ids[start : start + length] for start in starts], _digest(text))


def concat_contiguous(
    documents: Iterable[str], encode: Encode, count: int, length: int, seed: int
) -> Samples:
    """The first windows, side by side, of all documents joined by blank lines, tokenised once.

    Reads documents only as far as needed; the seed plays no part. Gives fewer than `count` windows
    if the text ends before.
    """
    needed = count * length + MARGIN
    waiting = iter(documents)
    pieces: list[str] = []
    size, limit, ended = 0, CHARS_PER_TOKEN * needed, False
    while True:
        while size < limit and not ended:
            document = next(waiting, None)
            if document is None:
                ended = True
            else:
                pieces.append(document if not pieces else "\n\n" + document)
                size += len(pieces[-1])
        text = "".join(pieces)[:limit]
        ids = encode(text)
        if len(ids) >= needed or (ended and size <= limit):
            break
        limit *= 2
    count = min(count, len(ids) // length)
    rows = [ids[index * length : (index + 1) * length] for index in range(count)]
    return Samples(rows, _digest(text))


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


SAMPLERS: dict[str, Sampler] = {
    "concat-contiguous": concat_contiguous,
    "concat-random": concat_random,
    "docs": docs,
}


DEFAULT = "concat-contiguous"


def get(name: str | None) -> Sampler:
    """Return the sampler called `name`; raise UsageError, with a suggestion, if there is none."""
    if name is not None and name not in SAMPLERS:
        raise UsageError(f"unknown sampler '{name}'{suggest(name, sorted(SAMPLERS))}")
    return SAMPLERS[name or DEFAULT]
