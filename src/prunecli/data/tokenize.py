"""The library verb `tokenize`: text into token rows of one length, for training.

Every document begins with what `bos` says and ends with the separator; they are cut into rows that
follow each other without padding, and the incomplete row at the end is left out. A document without
text gives nothing. The rules are in docs/tokens.md.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from prunecli import native
from prunecli.data import documents, shards, textfiles
from prunecli.data.documents import Text
from prunecli.data.records import Reading
from prunecli.data.shards import Encoding, Exact, Shards, at_lines
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
from prunecli.files import output, regular, seal, sidecar
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.sidecar import Input, Sidecar, SidecarBuilder
from prunecli.model import companions
from prunecli.record import Record, limited
from prunecli.report import SILENT, Report
from prunecli.settings import SHARD_TOKENS, Data, Result, RunContext


@dataclass(frozen=True)
class TokenizeRequest(Record):
    """Which text becomes rows, and how.

    Attributes:
        source: as in Data, but no token ids. split: what it gives that does not say so itself.
        seq_len: tokens of each row.
        tokenizer: a folder. train_tokenizer: train a byte-level BPE of that many ids on the text
            instead; a `tokenizer` folder beside it gets a copy.
        separator: behind every document: an id, `none`, or `auto`: the tokenizer's end of sequence
            (or beginning).
        bos: `auto` (documents begin as the tokenizer itself begins a text), `always` or `never`.
        special_tokens: what those that are spelled out in a text become, `text` or `ids`.
        tokens: stop after that many. shard_tokens: in each file, about. workers: processes, by
            default one for each core.
        text_column: of the source. skip_bad: how many of its lines may be without text.
    """

    source: str
    seq_len: int
    tokenizer: str | None = None
    train_tokenizer: int | None = None
    separator: str = AUTO
    bos: str = AUTO
    special_tokens: str = TEXT
    tokens: float | None = None
    split: str = "calibration"
    shard_tokens: int = SHARD_TOKENS
    workers: int | None = limited(None, least=1)
    text_column: str | None = Data.text_column
    skip_bad: int = Data.skip_bad


@exclusive
def tokenize(request: TokenizeRequest, run: RunContext = RunContext()) -> Result:
    """Write the rows of a text into the folder OUT, with the tokenizer that made them.

    Rerun to resume after the last finished shard. Raises UsageError, InputError (no text among
    them), OutputExists.
    """
    builder = SidecarBuilder("tokenize", run.output.argv)
    _check(request)
    files = [Path(request.source)] if regular.exists(request.source) else []
    output.check_path(run.output.path, run.output, files)
    text, reading = _open(request, run.report)
    tokenizer = _open_tokenizer(request)
    # of one that is trained: see train_bpe
    marks = tokenizer.marks if tokenizer else Marks(request.train_tokenizer or 0, eos=0)
    front = marks.front(request.bos)
    separator = marks.separator(request.separator, front)
    if request.separator == AUTO and separator is None and not front:
        run.report.info(
            "the tokenizer has no end of sequence: documents follow unseparated (--separator ID)"
        )
    size = textfiles.size(files[0]) if files else None
    options = _options(request, text.name, size, tokenizer, front, separator)
    if run.output.skip_existing and output.occupied(Path(run.output.path)):
        return _existing(run.output.path, options)
    if request.tokens is not None:  # else nobody knows yet how many there will be
        num_bytes = int(request.tokens) * shards.token_bytes(marks.size)
        output.check_disk(run.output.path, num_bytes)
    artefact = Artefact(builder, "rows", options, [], run, resumable=True)
    if done := artefact.settled(options):
        return done
    with artefact.partial() as folder:
        if tokenizer is None:
            text, reading = _train(request, text, reading, folder, run.report)
            tokenizer = Tokenizer(str(folder), request.special_tokens)
        encoding = Encoding(
            request.tokenizer or str(folder), request.special_tokens, front, separator
        )
        rows, text_digest = _write_rows(
            request, text, reading, tokenizer, encoding, folder, run.report
        )
        of_text = {"role": "text", "digest": text_digest, **text.origin}
        made = replace(artefact, inputs=[Input.model_validate(of_text)])
        record = made.sidecar(
            {"digest": rows.digest.hexdigest()},
            _results(rows, tokenizer, separator, reading.skipped),
        )
        _publish(request, tokenizer, record, folder, run.output.path)
    seconds, tokens = record.run.seconds or 1.0, rows.rows * rows.seq_len
    run.report.info(f"{rows.rows} rows of {rows.seq_len} tokens, {tokens / seconds:.0f} tokens/s")
    return made.result(record)


def _check(request: TokenizeRequest) -> None:
    """Raise UsageError for what no text could satisfy."""
    seq_len, tokens = request.seq_len, request.tokens
    if seq_len < 2:
        raise UsageError(f"--seq-len {seq_len}: expected at least 2")
    if tokens is not None and not seq_len <= tokens < inf:
        raise UsageError(f"--tokens {tokens:.0f} is not one row of {seq_len}, or more")
    if request.train_tokenizer is None and request.tokenizer is None:
        raise UsageError(
            "no tokenizer was given", "use --tokenizer DIR, or --train-tokenizer VOCAB"
        )
    if request.train_tokenizer is not None and request.train_tokenizer <= BYTES:
        raise UsageError(
            f"--train-tokenizer {request.train_tokenizer}: expected more than {BYTES} ids"
        )
    check_choice("bos", request.bos, BOS)


def _open(request: TokenizeRequest, report: Report) -> tuple[Text, Reading]:
    """Return the documents, to be read once, and what counts their bad lines."""
    reading = Reading(request.text_column, request.skip_bad, report)
    return documents.open_text(request.source, request.split, True, reading), reading


def _open_tokenizer(request: TokenizeRequest) -> Tokenizer | None:
    """Return the tokenizer that is there; None if it must be trained first."""
    if request.train_tokenizer is not None:
        check_choice("special-tokens", request.special_tokens, SPELLED_OUT)
        return None
    assert request.tokenizer is not None, "_check was asked"
    companions.contents(request.tokenizer, companions.TOKENIZER)  # raises now or never
    return Tokenizer(request.tokenizer, request.special_tokens)


def _options(
    request: TokenizeRequest,
    source: str,
    source_bytes: int | None,
    tokenizer: Tokenizer | None,
    front: list[int],
    separator: int | None,
) -> dict[str, Any]:
    """Return what is recorded of the request; `front` are the ids that documents begin with."""
    return {
        "source": source,
        "source_bytes": source_bytes,
        "seq_len": request.seq_len,
        "tokenizer": tokenizer.digest if tokenizer else None,
        "train_tokenizer": request.train_tokenizer,
        "separator": separator,
        "bos": front,
        "special_tokens": request.special_tokens,
        "tokens": None if request.tokens is None else int(request.tokens),
        "text_column": request.text_column,
        "skip_bad": request.skip_bad,
    }


def _existing(out: str, options: dict[str, Any]) -> Result:
    """Return the rows that are there if they were made alike; text is known by name and size."""
    record = sidecar.read_if_any(out)
    if record is None or record.kind != "rows" or record.options != options:
        raise OutputExists(
            f"OUT '{out}' exists and was made from other inputs or options", "use --force"
        )
    return Result(out, record.dump(), record.results)


def _train(
    request: TokenizeRequest, text: Text, reading: Reading, folder: Path, report: Report
) -> tuple[Text, Reading]:
    """Train a tokenizer into `folder`, unless a stopped run did; return the text to read next."""
    if not present(str(folder)):
        assert request.train_tokenizer is not None
        # tokenizer.json is the last of them: where it is, all are
        for name, content in train_bpe(text.documents, request.train_tokenizer, report).items():
            output.replace_bytes(folder / name, content)
        text, reading = _open(request, SILENT)
    if request.tokenizer is not None:
        _copy_for_user(folder, Path(request.tokenizer))
    return text, reading


def _write_rows(
    request: TokenizeRequest,
    text: Text,
    reading: Reading,
    tokenizer: Tokenizer,
    encoding: Encoding,
    folder: Path,
    report: Report,
) -> tuple[Shards, str]:
    """Write all rows into `folder`; return them, and the digest of their text.

    Raises InputError if there is not one.
    """
    seq_len = request.seq_len
    rows = Shards(
        folder,
        seq_len,
        max(1, request.shard_tokens // seq_len),
        None if request.tokens is None else int(request.tokens) // seq_len,
        tokenizer.marks.size,
    )
    pieces = shards.pieces(text.documents, Exact(tokenizer))
    workers = request.workers or len(os.sched_getaffinity(0))
    sha, reading.skipped = shards.write(rows, pieces, encoding, workers, report, reading)
    reading.tell(report)
    if not rows.rows:
        _refuse_short(request.source, seq_len, sha)
    if request.tokens is not None and not rows.full:
        report.info(
            f"'{request.source}' gives {rows.rows * seq_len} tokens in whole rows, "
            f"not {request.tokens:.0f}"
        )
    return rows, sha


def _refuse_short(source: str, seq_len: int, sha: str) -> NoReturn:
    if sha == shards.NO_TEXT:
        raise InputError(f"'{source}' has no text: every document is empty", "give other text")
    raise InputError(
        f"'{source}' is too short: not one row of {seq_len} tokens",
        "give more text or a smaller --seq-len",
    )


def _results(
    rows: Shards, tokenizer: Tokenizer, separator: int | None, skipped: int
) -> dict[str, Any]:
    return {
        "rows": rows.rows,
        "seq_len": rows.seq_len,
        "tokens": rows.rows * rows.seq_len,
        "tokenizer": tokenizer.digest,
        "vocab": tokenizer.marks.size,
        "separator": separator,
        "max_id": rows.digest.max_id,
        "shards": rows.count,
        "skipped": skipped,
    }


def _publish(
    request: TokenizeRequest, tokenizer: Tokenizer, record: Sidecar, folder: Path, out: str
) -> None:
    """Make the folder of finished shards OUT, with the tokenizer and the sidecar."""
    if request.train_tokenizer is None:
        _copy_tokenizer(str(request.tokenizer), folder)
        if digest(str(folder)) != tokenizer.digest:
            raise InputError(
                f"the tokenizer in '{request.tokenizer}' has changed since this run began",
                "use --restart",
            )
    state = (shards.STATE, output.MARK)
    record.seal(seal.of_folder(folder, apart=(*state, sidecar.FOLDER_SIDECAR)))
    output.write_text(folder / sidecar.FOLDER_SIDECAR, record.text())
    output.remove(folder / shards.STATE)
    output.publish_partial(out)


def _copy_tokenizer(source: str, folder: Path) -> None:
    for name, content in companions.contents(source, companions.TOKENIZER).items():
        (folder / name).parent.mkdir(exist_ok=True)
        output.replace_bytes(folder / name, content)


def _copy_for_user(folder: Path, target: Path) -> None:
    """Copy a freshly trained tokenizer to where the user wants it; never over another one."""
    if present(str(target)) and digest(str(target)) != digest(str(folder)):
        raise OutputExists(
            f"'{target}' has another tokenizer already", "leave out --train-tokenizer to use it"
        )
    if target.exists():
        _copy_tokenizer(str(folder), target)
        return
    with output.staged(str(target)) as new:
        new.mkdir()
        _copy_tokenizer(str(folder), new)


def train_bpe(texts: Iterable[str], vocab: int, report: Report = SILENT) -> dict[str, bytes]:
    """Train a byte-level BPE of `vocab` ids, `<|endoftext|>` the first; return its files.

    The same text gives the same tokenizer. Raises InputError if there is no text, or too little.
    """
    from tokenizers import models, trainers

    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=alphabet(),
        show_progress=False,
    )
    report.info(f"training a tokenizer of {vocab} ids")
    pieces = (well_formed(piece.own) for piece in shards.pieces(texts, at_lines))
    first = next(pieces, None)
    if first is None:
        raise InputError("there is no text to train a tokenizer on: every document is empty")
    # its merges alone take minutes, in which no piece is asked for
    native.called(lambda: tokenizer.train_from_iterator(chain([first], pieces), trainer))
    if tokenizer.get_vocab_size() < vocab:
        raise InputError(
            f"the text has merges for {tokenizer.get_vocab_size()} ids only, asked for {vocab}",
            "lower --train-tokenizer, or give more text",
        )
    return files_of(tokenizer, eos_token=END)
