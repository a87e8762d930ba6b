"""Token windows: text of any source through a tokenizer and a sampler, or token ids as they are.

One window is one sequence of the model; all have the same length.
"""

import platform
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
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
        windows: a hash of each row, by which two sets are searched for common windows.
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

    `folder` holds the model's tokenizer; `part` is the split to read where the source names none.
    Raises UsageError for unknown names, and InputError for tokens that cannot be read, are too few,
    too long for the model, or of another vocabulary.
    """
    for option, value, least in (("nsamples", data.nsamples, 1), ("seq-len", data.seq_len, 2)):
        if value is not None and value < least:
            raise UsageError(f"--{option} {value}: expected at least {least}")
    if rows.is_rows(data.source):
        chosen, meta = open_rows(data, folder)
        ids = chosen.read(range(chosen.start, chosen.stop))
    else:
        ids, meta = _drawn(data, folder, max_positions, part, report)
    count, length = ids.shape
    if length > max_positions:
        raise InputError(
            f"sequences of {length} tokens exceed the model's context length of {max_positions}",
            "use a smaller --seq-len" if meta["sampler"] else "give shorter rows",
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = f"id {low} < 0" if low < 0 else f"id {high} >= vocab_size {vocab_size}"
        raise InputError(
            f"tokens of another vocabulary: {wrong}", "use ids of this model's own tokenizer"
        )
    ids = ids.int().contiguous()
    return Tokens(
        ids,
        {**meta, "nsamples": count, "seq_len": length, "digest": tensor_digest(ids)},
        [sha256(row.numpy().astype("<i4").tobytes()).hexdigest()[:16] for row in ids],
    )


def contamination(ids: "torch.Tensor", among: "torch.Tensor") -> int:
    """Return how many windows [N, T] are mostly contained in others [M, S], at any offset.

    A window is if more than half of its runs of 32 tokens are (of a shorter window a quarter of its
    length, at least 8); runs of one repeated token do not count.
    """
    import torch

    run = min(RUN, ids.shape[1] // 4, among.shape[1] // 4)
    if run < SHORTEST_RUN:
        return 0
    draw = torch.Generator().manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, (run,), generator=draw)

    def hashes(window: "torch.Tensor") -> "torch.Tensor":
        runs = window.long().unfold(0, run, 1)  # [T - run + 1, run]
        return (runs * factors).sum(1)[(runs != runs[:, :1]).any(1)]

    known = torch.cat([hashes(window) for window in among]).sort().values

    def is_contained(window: "torch.Tensor") -> bool:
        own = hashes(window)
        if not len(own) or not len(known):
            return False
        nearest = torch.searchsorted(known, own).clamp(max=len(known) - 1)
        return bool((known[nearest] == own).double().mean() > 0.5)

    return sum(map(is_contained, ids))


def tell_of_joints(tokens: Tokens, source: str, report: Report) -> None:
    """Tell that a text's windows join its documents otherwise than rows do, if it is one.

    A model that was trained on rows has learned what ends a document there, and its loss on windows
    with other joints can be most of a nat per token higher.
    """
    if tokens.meta["sampler"] is not None and Path(source).exists():
        name = tokens.meta["source"]
        report.info(
            f"the windows of '{name}' join its documents otherwise than the rows that the model "
            "was trained on, and its loss is higher for that; `prunecli tokenize` makes rows of it"
        )


def open_rows(data: Data, folder: str) -> tuple[rows.Rows, dict[str, Any]]:
    """Open rows, which are used as they are, for the model in `folder`; return their `meta` too.

    Raises UsageError or InputError where `data` asks for other windows, or more of them.
    """
    chosen = rows.open_rows(data.source)
    _check_unchanged(data, len(chosen), chosen.seq_len)
    check_tokenizer(chosen, folder)
    stop = chosen.start + (data.nsamples or len(chosen))
    ranged = f":{chosen.start}:{stop}" if rows.is_ranged(data.source) else ""
    meta = {
        "source": chosen.name + ranged,
        "sampler": None,
        "seed": None,
        "tokenizer": chosen.tokenizer,
        "text": None,
        "rows": chosen.digest,
        "range": [chosen.start, stop],
    }
    return replace(chosen, stop=stop), meta


def check_tokenizer(chosen: rows.Rows, folder: str) -> None:
    """Raise InputError if a model folder has another tokenizer than the one that made the rows."""
    if chosen.tokenizer is None or not tokenizer.present(folder):
        return
    if chosen.tokenizer != tokenizer.digest(folder):
        raise InputError(
            f"rows '{chosen.name}' come from another tokenizer than that of '{folder}'",
            "make rows with the model's own: `prunecli tokenize --tokenizer IN`",
        )


def _check_unchanged(data: Data, count: int, length: int) -> None:
    """Raise UsageError for options that would change rows, InputError for more than there are."""
    own = {n: getattr(data, n) for n in ("sampler", "bos", "special_tokens", "text_column")}
    if data.seq_len != length:
        own["seq_len"] = data.seq_len
    own["skip_bad"] = data.skip_bad or None
    what = next((name.replace("_", "-") for name, value in own.items() if value is not None), None)
    if what is not None:
        raise UsageError(
            f"'{data.source}' is used as it is ({count} sequences of {length} tokens)",
            f"remove --{what}, or the --recipe that sets it",
        )
    if data.nsamples is not None and data.nsamples > count:
        raise InputError(
            f"'{data.source}' has {count} sequences, asked for {data.nsamples}", "lower --nsamples"
        )


def _drawn(
    data: Data, folder: str, max_positions: int, split: str, report: Report
) -> "tuple[torch.Tensor, dict[str, Any]]":
    """Return windows of text, int64 [sequences, length], and where they come from."""
    import numpy as np
    import torch

    sampler = samplers.get(data.sampler)
    reading = Reading(data.text_column, data.skip_bad, report)
    streaming = sampler is samplers.concat_contiguous
    text = documents.open_text(data.source, split, streaming, reading)
    count, length = _size(data, text.builtin, max_positions, report)
    bos = data.bos or AUTO
    encoder = Tokenizer(data.tokenizer or folder, data.special_tokens or TEXT)
    front = encoder.marks.front(bos)
    if len(front) >= length:
        raise UsageError(f"--seq-len {length}: no room for text after {len(front)} ids of --bos")
    of_text, of_windows = (front, []) if bos == OFFICIAL else ([], front)
    blank = True

    def encode(text: str) -> np.ndarray:
        nonlocal blank
        blank = blank and not text.strip()
        return np.append(np.array(of_text, dtype=np.int64), encoder.encode(text))

    if text.builtin:
        _warn_of_builtin(split, report)
    report.debug(f"drawing {count} windows of {length} tokens from {text.name}")
    own = length - len(of_windows)
    windows, digest = sampler(text.documents, encode, count, own, data.seed)
    reading.tell(report)
    if blank:
        raise InputError(f"'{data.source}' has no text in its documents", "give other text")
    _check_count(data, len(windows), count, length, report)
    meta = {
        "source": text.name,
        "sampler": data.sampler or samplers.DEFAULT,
        "seed": data.seed,
        "tokenizer": encoder.digest,
        "text": digest,
        "text_column": data.text_column,
        "skipped": reading.skipped,
        "bos": {"ids": front, "before": "text" if of_text else "windows"} if front else None,
        "special_tokens": data.special_tokens or TEXT,
        **text.origin,
    }
    if text.builtin:
        meta["python"] = platform.python_version()
    ids = torch.from_numpy(np.stack(windows)).long()  # [N, own]
    return torch.cat([torch.tensor(of_windows).long().expand(len(ids), -1), ids], 1), meta


def _size(data: Data, builtin: bool, max_positions: int, report: Report) -> tuple[int, int]:
    """Return how many windows to draw, and their length in tokens.

    Raises InputError for an explicit length that the model cannot take.
    """
    count, length = BUILTIN_SIZE if builtin else TEXT_SIZE
    if data.seq_len is None and length > max_positions:
        report.info(
            f"window length cut from {length} to {max_positions}, the model's context length"
        )
        length = max_positions
    if data.seq_len is not None:
        length = min(data.seq_len, max_positions) if data.up_to else data.seq_len
        if length > max_positions:
            raise InputError(
                f"--seq-len {length} exceeds the model's context length of {max_positions} tokens",
                "lower it",
            )
    return data.nsamples or count, length


def _warn_of_builtin(split: str, report: Report) -> None:
    remedy = "--data or --recipe paper" if split == "calibration" else "--data"
    report.info(
        "using the built-in text (Python's documentation), which suits trials only; "
        f"use {remedy} for real runs"
    )


def _check_count(data: Data, drawn: int, count: int, length: int, report: Report) -> None:
    """Raise InputError for no windows, or for fewer than were asked for; report any shortage."""
    if not drawn:
        raise InputError(
            f"'{data.source}' is too short for one window of {length} tokens",
            "give more text or a smaller --seq-len",
        )
    if drawn < count:
        short = f"'{data.source}' gives {drawn} windows of {length} tokens, not {count}"
        if data.nsamples is not None and not data.up_to:
            raise InputError(short, "lower --nsamples or --seq-len, or give more text")
        report.info(short)
