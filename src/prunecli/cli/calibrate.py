"""`prunecli calibrate`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.errors import UsageError
from prunecli.methods import registry


@options.takes(options.DATA, options.STREAM, options.OUTPUT, options.TALK, options.CONFIG)
def calibrate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="file to write")],
    methods: Annotated[
        str, option("for", "methods to collect statistics for, with commas", metavar="M[,M...]")
    ],
    ratio: options.Ratio = None,
    layers: options.Layers = None,
    compat: options.CompatOption = None,
) -> None:
    """Collect the statistics that methods need, of the dense model, into a file.

    One pass serves any number of methods. --ratio or --layers is for minitron-depth, which tries
    every block of as many layers as will go.
    """
    report = options.settings(context)
    (folder,) = options.from_stdin(model)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise UsageError("--for names no method")
    options.refuse_tokenizer(context, context.params["data"])

    collected = any(need.compat for name in names for need in registry.get(name).needs)
    from prunecli import api

    made = api.calibrate(
        folder or "",
        out,
        methods=names,
        data=options.data_of(context.params),
        amount=options.amount_of(context.params),
        compat=options.follows_official(context, collected),
        compute=options.compute_of(context.params),
        output=options.output(context.params),
        report=report,
    )
    console.print_made(made, context.params)


EXAMPLES = (
    ("For two methods, built-in text", "calibrate --for flap,minitron-width in/ s.safetensors"),
    ("On own text", "calibrate --for flap --data text/ --seq-len 2048 in/ s.safetensors"),
)
