"""`prunecli init`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import option
from prunecli.settings import InitRequest

SHAPE = "Architecture"
WEIGHTS = "Weights and tokenizer"


INITIALIZATION: options.Group = {
    "like": (
        Annotated[
            str | None,
            option(
                "like",
                "take sizes and masks from this checkpoint, or - for stdin",
                SHAPE,
                metavar="DIR",
            ),
        ],
        None,
    ),
    "config": (
        Annotated[
            str | None,
            typer.Option(
                "--config",
                help="take sizes from this config.json of a model (not a file of options)",
                metavar="FILE.json",
                rich_help_panel=SHAPE,
            ),
        ],
        None,
    ),
    "masks": (
        Annotated[
            str,
            option(
                "masks", "keep the mask of a sparse --like, or drop it", SHAPE, metavar="keep|drop"
            ),
        ],
        "keep",
    ),
    "scheme": (
        Annotated[
            str,
            option(
                "scheme",
                "initialization scale: hf (initializer_range of the config), depth-scaled "
                "(1/sqrt(2 layers) for projections into the residual stream), mup (1/sqrt(width) "
                "in blocks, 1/width in the head)",
                WEIGHTS,
                metavar="hf|depth-scaled|mup",
            ),
        ],
        "hf",
    ),
    "warm": (
        Annotated[
            str | None,
            option(
                "from",
                "copy this smaller checkpoint into the leading block of every tensor",
                WEIGHTS,
                metavar="DIR",
            ),
        ],
        None,
    ),
    "compat": (
        Annotated[
            str | None,
            option(
                "compat",
                "keep embeddings and norms of a sparse --like, as the paper's script does",
                WEIGHTS,
            ),
        ],
        None,
    ),
    "tokenizer": (
        Annotated[
            str,
            option(
                "tokenizer",
                "folder to copy a tokenizer from, bytes (one token per byte), none, or auto: that "
                "of --like, or bytes if the vocabulary is large enough",
                WEIGHTS,
                metavar="auto|bytes|none|DIR",
            ),
        ],
        "auto",
    ),
    "seed": (options.Seed, 0),
    "dtype": (
        Annotated[
            str, option("dtype", "storage type; auto: that of --like or of the config", WEIGHTS)
        ],
        "auto",
    ),
}


@options.with_options(INITIALIZATION, options.OUTPUT, options.VERBOSITY)
def init(
    context: typer.Context,
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
) -> None:
    """Create a randomly initialized model.

    Its sizes are those of a config.json, or of another checkpoint, whose scratch baseline it is.
    """
    report, values = records.setup(context), context.params
    if values["like"] is None:
        records.refuse(context, ["masks"], "needs --like")
    own = {name: values[name] for name in INITIALIZATION}
    own |= {"like": records.from_stdin(own["like"])[0], "compat": own["compat"] is not None}
    from prunecli.training.init import init as verb

    run = records.run_context(values, out, report, records.command_line(context))
    console.print_made(verb(InitRequest(**own), run), values, "train --data ROWS {out} OUT")


EXAMPLES = (
    ("the scratch baseline of a pruned model", "init --like p/ --masks keep s/"),
    ("a tiny model", "init --config tiny.json tiny/"),
)
