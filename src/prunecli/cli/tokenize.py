"""`prunecli tokenize`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.settings import SHARD_TOKENS


@options.takes(options.READING, options.OUTPUT, options.TALK, options.CONFIG)
def tokenize(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="a .txt/.jsonl/.json/.parquet[.gz/.zst] file or folder, a named set "
            "(c4, dclm, ...), hf:org/name[:split[:column]], or builtin",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    seq_len: Annotated[int, typer.Option("--seq-len", help="tokens per row", min=2)],
    tokenizer: Annotated[
        str | None,
        option(
            "tokenizer",
            "folder with the tokenizer (with --train-tokenizer: where to put a copy of it)",
            metavar="DIR",
        ),
    ] = None,
    train_tokenizer: Annotated[
        int | None,
        option("train-tokenizer", "train a byte-level BPE of this many ids on D", metavar="VOCAB"),
    ] = None,
    separator: Annotated[
        str,
        option(
            "separator",
            "id after every document: auto (the tokenizer's end of sequence), none, or an id",
        ),
    ] = "auto",
    bos: Annotated[
        str,
        option(
            "bos",
            "whether documents begin with beginning of sequence: auto is as the tokenizer begins "
            "a text",
        ),
    ] = "auto",
    special_tokens: Annotated[
        str,
        option(
            "special-tokens",
            "what those spelled out in a text become: text like any other, or their ids",
        ),
    ] = "text",
    tokens: Annotated[
        float | None, option("tokens", "stop after this many tokens [default: all of D]")
    ] = None,
    shard_tokens: Annotated[
        int, option("shard-tokens", "tokens per file; a stopped run goes on at the last one", min=1)
    ] = SHARD_TOKENS,
    workers: Annotated[
        int | None, option("workers", "processes [default: one per core]", min=1)
    ] = None,
    restart: options.Restart = False,
) -> None:
    """Turn text into token rows of one length for training.

    Documents follow each other with a separator between, without padding; those without text give
    nothing. The rows depend on text and tokenizer alone; a stopped run goes on from OUT.partial.
    OUT holds the tokenizer too.
    """
    report, values = options.settings(context), context.params
    source = options.from_stdin(data)[0] or ""
    from prunecli.data.tokenize import TokenizeRequest
    from prunecli.data.tokenize import tokenize as verb

    names = TokenizeRequest.__dataclass_fields__.keys() & values.keys()
    request = TokenizeRequest(source, **{name: values[name] for name in names})
    console.print_made(verb(request, options.run_context(values, out, report)), values)


EXAMPLES = (
    ("Text of one's own", "tokenize --tokenizer in/ --seq-len 2048 text/ rows/"),
    ("With a tokenizer of its own", "tokenize --train-tokenizer 4096 --seq-len 256 text/ rows/"),
    (
        "A billion tokens of a hub set",
        "tokenize --tokenizer in/ --seq-len 8192 --tokens 1e9 dclm rows/",
    ),
)
