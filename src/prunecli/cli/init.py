"""`prunecli init`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import Group, of_record, option
from prunecli.settings import InitRequest

# one option for every field of InitRequest, with OTHERS
INIT: Group = of_record(
    InitRequest,
    {
        "like": option("like", "checkpoint to be a scratch twin of, or -", metavar="DIR"),
        # no option of the environment, where PRUNECLI_CONFIG is a file of options
        "config": typer.Option(
            "--config",
            help="config.json of the model (not a file of options, as --config is elsewhere)",
            metavar="FILE.json",
        ),
        "masks": option("masks", "keep the zeros of a sparse --like, or drop", metavar="keep|drop"),
        "scheme": option(
            "scheme",
            "initialization scale: hf (initializer_range of the config), depth-scaled (times "
            "1/sqrt(2 layers) for matrices that write into the residual stream), mup "
            "(1/sqrt(width) in the blocks, 1/width in the output head)",
            metavar="hf|depth-scaled|mup",
        ),
        "warm": option(
            "from",
            "smaller checkpoint to copy into the leading block of every tensor",
            metavar="DIR",
        ),
        "tokenizer": option(
            "tokenizer",
            "folder to copy it from, bytes (one token per byte), none, or auto: that of --like, "
            "or bytes where the vocabulary has room",
        ),
        "dtype": option("dtype", "storage type; auto is that of --like or of the config"),
    },
)


OTHERS: Group = {
    "compat": (options.CompatOption, None),
    "seed": (options.Seed, InitRequest.seed),
}


@options.takes(INIT, OTHERS, options.OUTPUT, options.TALK)
def init(
    context: typer.Context,
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
) -> None:
    """Create a randomly initialized checkpoint, from a config.json or shaped like another model.

    With --compat official a twin of a sparse model keeps embeddings and norms, as the paper's
    script does.
    """
    report, values = options.settings(context), context.params
    if values["like"] is None:
        options.refuse(context, ["masks"], "is about the zeros of --like")
    request = {**values, "like": options.from_stdin(values["like"])[0]}
    from prunecli import api

    made = api.init(
        out,
        **{name: request[name] for name in (*INIT, "seed")},
        compat=values["compat"] is not None,
        output=options.output(values),
        report=report,
    )
    console.print_made(made, values)


EXAMPLES = (
    ("The scratch twin of a pruned model", "init --like p/ --masks keep s/"),
    ("A tiny model", "init --config tiny.json tiny/"),
)
