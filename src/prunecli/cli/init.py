"""`prunecli init`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option


@options.takes(options.OUTPUT, options.TALK)
def init(
    context: typer.Context,
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    like: Annotated[
        str | None, option("like", "checkpoint to be a scratch twin of, or -", metavar="DIR")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="config.json of the model", metavar="FILE.json")
    ] = None,
    masks: Annotated[
        str, option("masks", "keep the zeros of a sparse --like, or drop", metavar="keep|drop")
    ] = "keep",
    scheme: Annotated[
        str,
        option(
            "scheme",
            "widths of the draws: hf (the config's), depth-scaled (1/sqrt(2 layers) on what "
            "writes into the residual stream), mup (1/sqrt(width) in blocks, 1/width in the head)",
            metavar="hf|depth-scaled|mup",
        ),
    ] = "hf",
    warm: Annotated[
        str | None,
        option(
            "from",
            "smaller checkpoint whose weights go into the leading block of every tensor",
            metavar="DIR",
        ),
    ] = None,
    compat: options.CompatOption = None,
    tokenizer: Annotated[
        str,
        option(
            "tokenizer",
            "folder to copy it from, bytes (one token a byte), none, or auto: that of --like, or "
            "bytes where the vocabulary has room",
        ),
    ] = "auto",
    seed: options.Seed = 0,
    dtype: Annotated[
        str, option("dtype", "storage type; auto is that of --like or of the config")
    ] = "auto",
) -> None:
    """Make a checkpoint with random weights: a scratch twin, or from a config.json.

    With --compat official a sparse twin keeps embeddings and norms, as the paper's script does.
    """
    report = options.settings(context)
    if like is None:
        options.refuse(context, ["masks"], "is about the zeros of --like")
    from prunecli.training import init

    made = init.init(
        out,
        config=config,
        like=options.from_stdin(like)[0],
        masks=masks,
        scheme=scheme,
        warm=warm,
        compat=compat is not None,
        seed=seed,
        dtype=dtype,
        tokenizer=tokenizer,
        output=options.output(context.params),
        report=report,
    )
    console.print_made(made, context.params)


EXAMPLES = (
    ("The scratch twin of a pruned model", "init --like p/ --masks keep s/"),
    ("A tiny model", "init --config tiny.json tiny/"),
)
