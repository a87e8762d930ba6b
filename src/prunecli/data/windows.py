"""Token windows of D: text of any source through a tokenizer and a sampler, or token ids as given.

One window is one sequence of the model; all have the same length.
"""

import platform
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from prunecli.data import documents, rows, samplers, tokenizer
from prunecli.data.records import Reading
from prunecli.data.tokenizer import AUTO, OFFICIAL, TEXT, Tokenizer
from prunecli.errors import InputError, UsageError
from prunecli.files.tensorfile import tensor_digest
from prunecli.report import SILENT, Report
from prunecli.settings import Data

if TYPE_CHECKING:
    import torch

BUILTIN_SIZE = (32, 512)  # windows, tokens of each
TEXT_SIZE = (128, 2048)


RUN, SHORTEST_RUN = 32, 8  # tokens in a row that two texts hardly share by chance


@dataclass(frozen=True)
class Tokens:
    """Token ids, and where they come from.

    Attributes:
        ids: int32 [sequences, length].
        meta: source, sampler, seed, nsamples, seq_len, the digests of tokenizer and text (None for
            given ids), and `digest`, that of the ids; of text also `bos` (the ids in front, and of
            what: every window, or the text) and `special_tokens`. Deterministic and free of paths.
        windows: a hash of each row, to tell whether two sets share windows.
    """

    ids: "torch.Tensor"
    meta: dict[str, Any]
    windows: list[str]


def load(
    data: Data,
    *,
    folder: str,
    vocab_size: int,
    max_positions: int,
    part: str = "calibration",
    report: Report = SILENT,
) -> Tokens:
    """Return the windows that `data` asks for.

    `folder` holds the model's tokenizer, `part` is what a source gives that does not say so itself.
    Raises UsageError for unknown names and InputError for tokens that cannot be had, are too few,
    too long for the model or of another vocabulary.
    """
    for option, value, least in (("nsamples", data.nsamples, 1), ("seq-len", data.seq_len, 2)):
        if value is not None and value < least:
            raise UsageError(f"--{option} {value}: expected at least {least}")
    if rows.is_rows(data.source):
        found, meta = open_rows(data, folder)
        ids = found.read(range(found.start, found.stop))
    else:
        ids, meta = _drawn(data, folder, max_positions, part, report)
    count, length = ids.shape
    if length > max_positions:
        raise InputError(
            f"sequences of {length} tokens are too long: the model has {max_positions} positions",
            "use a smaller --seq-len" if meta["sampler"] else "give shorter rows",
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = f"id {low} < 0" if low < 0 else f"id {high} >= vocab_size {vocab_size}"
        raise InputError(
            f"tokens of another vocabulary: {wrong}", "use those of this model's own tokenizer"
        )
    ids = ids.int().contiguous()
    return Tokens(
        ids,
        {**meta, "nsamples": count, "seq_len": length, "digest": tensor_digest(ids)},
        [sha256(row.numpy().astype("<i4").tobytes()).hexdigest()[:16] for row in ids],
    )


def contained(ids: "torch.Tensor", among: "torch.Tensor") -> int:
    """Return how many windows [N, T] mostly stand in other windows [M, S], wherever they begin.

    That is: of whose runs of 32 tokens (a quarter of a shorter window, 8 at least) more than half
    do, those of one token over and over left out.
    """
    import torch

    run = min(RUN, ids.shape[1] // 4, among.shape[1] // 4)
    if run < SHORTEST_RUN:
        return 0
    draw = torch.Generator().manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, (run,), generator=draw)

    def hashes(window: "torch.Tensor") -> "torch.Tensor":
        runs = window.long().unfold(0, run, 1)
        return (runs * factors).sum(1)[(runs != runs[:, :1]).any(1)]

    known = torch.cat([hashes(window) for window in among]).sort().values

    def stands(window: "torch.Tensor") -> bool:
        own = hashes(window)
        if not len(own) or not len(known):
            return False
        nearest = torch.searchsorted(known, own).clamp(max=len(known) - 1)
        return bool((known[nearest] == own).double().mean() > 0.5)

    return sum(map(stands, ids))


def open_rows(data: Data, folder: str) -> tuple[rows.Rows, dict[str, Any]]:
    """Open D that is rows, used as they are, for the model in `folder`; tell where they are from.

    Raises UsageError or InputError where `data` asks for other windows or more of them.
    """
    found = rows.open_rows(data.source)
    _as_it_is(data, len(found), found.seq_len)
    check_tokenizer(found, folder)
    stop = found.start + (data.nsamples or len(found))
    ranged = f":{found.start}:{stop}" if rows.is_ranged(data.source) else ""
    meta = {
        "source": found.name + ranged,
        "sampler": None,
        "seed": None,
        "tokenizer": found.tokenizer,
        "text": None,
        "rows": found.digest,
        "range": [found.start, stop],
    }
    return replace(found, stop=stop), meta


def check_tokenizer(found: rows.Rows, folder: str) -> None:
    """Raise InputError if a model folder has another tokenizer than the one that made the rows."""
    if found.tokenizer is None or not tokenizer.present(folder):
        return
    if found.tokenizer != tokenizer.digest(folder):
        raise InputError(
            f"rows '{found.name}' come from another tokenizer than that of '{folder}'",
            "tokenize the text with the model's own",
        )


def _as_it_is(data: Data, count: int, length: int) -> None:
    """Raise an error for options that would change rows which are used as they are."""
    own = {n: getattr(data, n) for n in ("sampler", "bos", "special_tokens", "text_column")}
    if data.seq_len != length:
        own["seq_len"] = data.seq_len
    own["skip_bad"] = data.skip_bad or None
    what = next((name.replace("_", "-") for name, value in own.items() if value is not None), None)
    if what is not None:
        raise UsageError(
            f"'{data.source}' is used as it is ({count} sequences of {length} tokens)",
            f"leave out --{what}, or the --recipe that asks for it",
        )
    if data.nsamples is not None and data.nsamples > count:
        raise InputError(
            f"'{data.source}' has {count} sequences, asked for {data.nsamples}", "lower --nsamples"
        )


def _drawn(
    data: Data, folder: str, max_positions: int, part: str, report: Report
) -> "tuple[torch.Tensor, dict[str, Any]]":
    """Return windows of text, int64 [sequences, length]."""
    import numpy as np
    import torch

    sampler = samplers.get(data.sampler)
    reading = Reading(data.text_column, data.skip_bad, report)
    lazy = sampler is samplers.concat_contiguous
    text = documents.open_text(data.source, part, lazy, reading)
    count, length = BUILTIN_SIZE if text.builtin else TEXT_SIZE
    if data.seq_len is not None:
        length = data.seq_len
        if length > max_positions and data.up_to:
            length = max_positions
        if length > max_positions:
            raise InputError(
                f"--seq-len {length} is too long: the model has {max_positions} positions",
                "lower it",
            )
    elif length > max_positions:
        report.note(
            f"windows of {max_positions} tokens, not {length}: the model has no more positions"
        )
        length = max_positions
    count = data.nsamples or count
    special_tokens, bos = data.special_tokens or TEXT, data.bos or AUTO
    encoder = Tokenizer(data.tokenizer or folder, special_tokens)
    front = encoder.marks.front(bos)
    of_text = front if bos == OFFICIAL else []
    of_windows = front if bos != OFFICIAL else []
    if len(front) >= length:
        raise UsageError(f"--seq-len {length}: no room for text behind {len(front)} ids of --bos")

    blank = True

    def encode(text: str) -> np.ndarray:
        nonlocal blank
        blank = blank and not text.strip()
        return np.append(np.array(of_text, dtype=np.int64), encoder.encode(text))

    if text.builtin:
        report.note(
            f"{text.name}, the documentation inside Python, is for trying and CI"
            + ("; `--recipe paper` is the paper's calibration set" * (part == "calibration"))
        )
    report.detail(f"drawing {count} windows of {length} tokens from {text.name}")
    own = length - len(of_windows)
    windows, digest = sampler(text.documents, encode, count, own, data.seed)
    reading.tell(report)
    if blank:
        raise InputError(f"'{data.source}' has no text in its documents", "give other text")
    if not windows:
        raise InputError(
            f"'{data.source}' is too short: not one window of {length} tokens",
            "give more text or a smaller --seq-len",
        )
    if len(windows) < count:
        short = f"'{data.source}' gives {len(windows)} windows of {length} tokens, not {count}"
        if data.nsamples is not None and not data.up_to:
            raise InputError(short, "lower --nsamples or --seq-len, or give more text")
        report.note(short)
    meta = {
        "source": text.name,
        "sampler": data.sampler or samplers.DEFAULT,
        "seed": data.seed,
        "tokenizer": encoder.digest,
        "text": digest,
        "text_column": data.text_column,
        "skipped": reading.skipped,
        "bos": {"ids": front, "before": "text" if of_text else "windows"} if front else None,
        "special_tokens": special_tokens,
    }
    if text.builtin:
        meta["python"] = platform.python_version()
    ids = torch.from_numpy(np.stack(windows)).long()
    return torch.cat([torch.tensor(of_windows).long().expand(len(ids), -1), ids], 1), meta
