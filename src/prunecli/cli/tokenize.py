"""`prunecli tokenize`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import COMPUTE_PANEL, OUTPUT_PANEL, REQUIRED, option
from prunecli.settings import SHARD_TOKENS

TOKENIZER = "Tokenizer"
ROWS = "Rows"
TEXT = "Text"


TOKENIZATION: options.Group = {
    "seq_len": (
        Annotated[
            int,
            typer.Option(
                "--seq-len", help="tokens per row", metavar="N", rich_help_panel=ROWS, min=2
            ),
        ],
        REQUIRED,
    ),
    "tokenizer": (
        Annotated[
            str | None,
            option(
                "tokenizer",
                "folder with the tokenizer (with --train-tokenizer: save a copy of it there)",
                TOKENIZER,
                metavar="DIR",
            ),
        ],
        None,
    ),
    "train_tokenizer": (
        Annotated[
            int | None,
            option(
                "train-tokenizer",
                "train a byte-level BPE tokenizer with a vocabulary of this size on DATA",
                TOKENIZER,
                metavar="N",
            ),
        ],
        None,
    ),
    "separator": (
        Annotated[
            str,
            option(
                "separator",
                "token after every document: auto (the tokenizer's end of sequence), none, or "
                "an id",
                ROWS,
                metavar="auto|none|N",
            ),
        ],
        "auto",
    ),
    "bos": (
        Annotated[
            str,
            option(
                "bos",
                "begin documents with the beginning-of-sequence token; auto: if the tokenizer "
                "adds it",
                ROWS,
            ),
        ],
        "auto",
    ),
    "special_tokens": (
        Annotated[
            str,
            option(
                "special-tokens",
                "read special tokens spelled out in DATA as plain text, or as their ids",
                ROWS,
            ),
        ],
        "text",
    ),
    "tokens": (
        Annotated[
            float | None,
            option(
                "tokens", "stop after this many tokens [default: all of DATA]", ROWS, metavar="N"
            ),
        ],
        None,
    ),
    "shard_tokens": (
        Annotated[
            int,
            option(
                "shard-tokens",
                "tokens per file; a rerun resumes after the last finished file",
                OUTPUT_PANEL,
                metavar="N",
                min=1,
            ),
        ],
        SHARD_TOKENS,
    ),
    "workers": (
        Annotated[
            int | None,
            option(
                "workers", "processes [default: one per core]", COMPUTE_PANEL, metavar="N", min=1
            ),
        ],
        None,
    ),
    "restart": (options.Restart, False),
}


@options.with_options(
    TOKENIZATION,
    options.under(TEXT, options.READING),
    options.OUTPUT,
    options.VERBOSITY,
    options.CONFIG,
)
def tokenize(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="a .txt/.jsonl/.json/.parquet[.gz/.zst] file or folder, a named set "
            "(c4, dclm, ...), hf:org/name[:split[:column]], or builtin",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
) -> None:
    """Convert text into token rows of equal length for training.

    Documents follow each other with a separator between, without padding; empty ones are skipped.
    The rows depend on text and tokenizer alone. OUT holds the tokenizer too. Progress is saved in
    OUT.partial. Rerun the same command to resume.
    """
    report, values = records.setup(context), context.params
    source = records.from_stdin(data)[0] or ""
    from prunecli.data.tokenize import TokenizeRequest
    from prunecli.data.tokenize import tokenize as verb

    names = TokenizeRequest.__dataclass_fields__.keys() & values.keys()
    request = TokenizeRequest(source, **{name: values[name] for name in names})
    console.print_made(
        verb(request, records.run_context(values, out, report)), values, "train --data {out} IN OUT"
    )


EXAMPLES = (
    ("your own text", "tokenize --tokenizer in/ --seq-len 2048 text/ rows/"),
    ("with a new tokenizer", "tokenize --train-tokenizer 4096 --seq-len 256 text/ rows/"),
    (
        "a billion tokens of a dataset on the hub",
        "tokenize --tokenizer in/ --seq-len 8192 --tokens 1e9 dclm rows/",
    ),
)
