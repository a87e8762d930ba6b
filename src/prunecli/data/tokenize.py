"""The library verb `tokenize`: text into token rows of one length, for training.

Every document begins with what `bos` says and ends with the separator; they are cut into rows that
follow each other without padding, and the incomplete row at the end is left out. A document without
text gives nothing. The rules are in docs/tokens.md.
"""

import os
from collections.abc import Iterable
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from prunecli.data import documents, textfiles
from prunecli.data import shards as token_shards
from prunecli.data.records import Reading
from prunecli.data.shards import Encoding, Exact, at_lines
from prunecli.data.tokenizer import (
    AUTO,
    BOS,
    BYTES,
    END,
    SPELLED_OUT,
    TEXT,
    Marks,
    Tokenizer,
    alphabet,
    byte_level,
    check_choice,
    digest,
    files_of,
    present,
    well_formed,
)
from prunecli.errors import InputError, OutputExists, UsageError
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import Input, SidecarBuilder
from prunecli.model import companions
from prunecli.report import SILENT, Report
from prunecli.settings import SHARD_TOKENS, Data, Output, Result


def tokenize(
    source: str,
    out: str,
    *,
    seq_len: int,
    tokenizer: str | None = None,
    train_tokenizer: int | None = None,
    separator: str = AUTO,
    bos: str = AUTO,
    special_tokens: str = TEXT,
    tokens: float | None = None,
    part: str = "calibration",
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    text_column: str | None = Data.text_column,
    skip_bad: int = Data.skip_bad,
    restart: bool = False,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Write the rows of D into the folder OUT, with the tokenizer that made them.

    `tokenizer` is a folder. `train_tokenizer` trains a byte-level BPE of that many ids on D
    instead; a `tokenizer` folder given beside it gets a copy. `separator` is an id, `none`, or
    `auto`: the tokenizer's end of sequence (or beginning). `bos` is `auto` (documents begin as the
    tokenizer itself begins a text), `always` or `never`; `special_tokens` what those that are
    spelled out become, `text` or `ids`. `tokens` stops after that many. `text_column` names the
    column of D that is read, `skip_bad` lines of it may be without text.
    A stopped run goes on from its last finished shard, of about `shard_tokens`.
    Raises UsageError, InputError (no text among them), OutputExists.
    """
    output = output or Output()
    recorder = SidecarBuilder("tokenize", output.argv)
    workers = workers or len(os.sched_getaffinity(0))
    _check(seq_len, tokenizer, train_tokenizer, tokens)
    check_choice("bos", bos, BOS)
    read = [Path(source)] if textfiles.exists(Path(source)) else []
    place.check_place(out, output, read)
    reading = Reading(text_column, skip_bad, report)
    text = documents.open_text(source, part, True, reading)
    if train_tokenizer is None:
        assert tokenizer is not None
        companions.contents(tokenizer, companions.TOKENIZER)  # refused now or never
        encoder = Tokenizer(tokenizer, special_tokens)
        marks = encoder.marks
        made_with: dict[str, Any] = {"tokenizer": encoder.digest, "train_tokenizer": None}
    else:
        check_choice("special-tokens", special_tokens, SPELLED_OUT)
        marks = Marks(train_tokenizer, eos=0)  # see train_bpe
        made_with = {"tokenizer": None, "train_tokenizer": train_tokenizer}
    front = marks.front(bos)
    between = marks.separator(separator, front)
    if separator == AUTO and between is None and not front:
        report.note(
            "the tokenizer has no end of sequence: documents follow unseparated (--separator ID)"
        )
    options = {
        "source": text.name,
        "source_bytes": textfiles.size(read[0]) if read else None,
        "seq_len": seq_len,
        **made_with,
        "separator": between,
        "bos": front,
        "special_tokens": special_tokens,
        "tokens": None if tokens is None else int(tokens),
        "text_column": text_column,
        "skip_bad": skip_bad,
    }
    if output.skip_existing and place.occupied(Path(out)):
        return _same(out, options)
    key = sidecar.key("rows", options, [])
    place.check_partial(out, key, restart)
    if output.dry_run:
        return Result(out, results=options)
    with place.partial(out, key, restart) as folder:
        if train_tokenizer is not None:
            if not present(str(folder)):
                # tokenizer.json is the last of them: where it is, all are
                for name, content in train_bpe(text.documents, train_tokenizer, report).items():
                    place.replace_bytes(folder / name, content)
                reading = Reading(text_column, skip_bad)
                text = documents.open_text(source, part, True, reading)
            if tokenizer is not None:
                _give_tokenizer(folder, Path(tokenizer))
            encoder = Tokenizer(str(folder), special_tokens)
        shards = token_shards.Shards(
            folder,
            seq_len,
            max(1, shard_tokens // seq_len),
            None if tokens is None else int(tokens) // seq_len,
            marks.size,
        )
        sha, reading.skipped = token_shards.write(
            shards,
            token_shards.pieces(text.documents, Exact(encoder)),
            Encoding(str(tokenizer or folder), special_tokens, front, between),
            workers,
            report,
            reading,
        )
        reading.tell(report)
        if not shards.rows:
            _refuse_short(source, seq_len, sha)
        if tokens is not None and not shards.full:
            report.note(
                f"'{source}' gives {shards.rows * seq_len} tokens in whole rows, not {tokens:.0f}"
            )
        results = {
            "rows": shards.rows,
            "seq_len": seq_len,
            "tokens": shards.rows * seq_len,
            "tokenizer": encoder.digest,
            "vocab": marks.size,
            "separator": between,
            "max_id": shards.digest.max_id,
            "shards": shards.count,
            "skipped": reading.skipped,
        }
        made = recorder.sidecar(
            "rows",
            options,
            [Input(role="text", digest=sha)],
            outputs={"digest": shards.digest.hexdigest()},
            results=results,
        )
        if train_tokenizer is None:
            _copy_tokenizer(str(tokenizer), folder)
            if digest(str(folder)) != encoder.digest:
                raise InputError(
                    f"the tokenizer in '{tokenizer}' has changed since this run began",
                    "use --restart",
                )
        place.write_text(folder / sidecar.FOLDER_SIDECAR, made.text())
        for name in (token_shards.STATE, place.MARK):
            place.remove(folder / name)
        place.publish(folder, Path(out).resolve())
    seconds = made.run.seconds or 1.0
    report.note(
        f"{shards.rows} rows of {seq_len} tokens, {shards.rows * seq_len / seconds:.0f} tokens/s"
    )
    return Result(out, made.dump(), made.results)


def _check(
    seq_len: int, tokenizer: str | None, train_tokenizer: int | None, tokens: float | None
) -> None:
    if seq_len < 2:
        raise UsageError(f"--seq-len {seq_len}: expected at least 2")
    if tokens is not None and not seq_len <= tokens < inf:
        raise UsageError(f"--tokens {tokens:.0f} is not one row of {seq_len}, or more")
    if train_tokenizer is None and tokenizer is None:
        raise UsageError(
            "no tokenizer was given", "use --tokenizer DIR, or --train-tokenizer VOCAB"
        )
    if train_tokenizer is not None and train_tokenizer <= BYTES:
        raise UsageError(f"--train-tokenizer {train_tokenizer}: expected more than {BYTES} ids")


def _same(out: str, options: dict[str, Any]) -> Result:
    """Return the rows that are there if they were made alike; text is told by name and size."""
    found = sidecar.read_if_any(out)
    if found is None or found.kind != "rows" or found.options != options:
        raise OutputExists(
            f"OUT '{out}' exists and was made from other inputs or options", "use --force"
        )
    return Result(out, found.dump(), found.results)


def _refuse_short(source: str, seq_len: int, sha: str) -> NoReturn:
    if sha == token_shards.NO_TEXT:
        raise InputError(f"'{source}' has no text: every document is empty", "give other text")
    raise InputError(
        f"'{source}' is too short: not one row of {seq_len} tokens",
        "give more text or a smaller --seq-len",
    )


def _copy_tokenizer(source: str, folder: Path) -> None:
    for name, content in companions.contents(source, companions.TOKENIZER).items():
        (folder / name).parent.mkdir(exist_ok=True)
        place.replace_bytes(folder / name, content)


def _give_tokenizer(folder: Path, target: Path) -> None:
    """Copy a freshly trained tokenizer to where the user wants it; never over another one."""
    target.mkdir(parents=True, exist_ok=True)
    if present(str(target)) and digest(str(target)) != digest(str(folder)):
        raise OutputExists(
            f"'{target}' has another tokenizer already", "leave out --train-tokenizer to use it"
        )
    _copy_tokenizer(str(folder), target)


def train_bpe(texts: Iterable[str], vocab: int, report: Report = SILENT) -> dict[str, bytes]:
    """Train a byte-level BPE of `vocab` ids, `<|endoftext|>` the first; return its files.

    The same text gives the same tokenizer. Raises InputError if there is no text, or too little.
    """
    from tokenizers import models, trainers

    bare = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=alphabet(),
        show_progress=False,
    )
    report.note(f"training a tokenizer of {vocab} ids")
    found = (well_formed(piece.own) for piece in token_shards.pieces(texts, at_lines))
    first = next(found, None)
    if first is None:
        raise InputError("there is no text to train a tokenizer on: every document is empty")
    bare.train_from_iterator(chain([first], found), trainer)
    if bare.get_vocab_size() < vocab:
        raise InputError(
            f"the text has merges for {bare.get_vocab_size()} ids only, asked for {vocab}",
            "lower --train-tokenizer, or give more text",
        )
    return files_of(bare, eos_token=END)
