"""`prunecli score`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.methods import registry


@options.takes(
    options.DATA, options.METHOD, options.STREAM, options.OUTPUT, options.TALK, options.CONFIG
)
def score(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="file to write")],
    method: Annotated[str, option("method", "pruning method", metavar="M")],
    stats: options.Stats = None,
    ratio: options.Ratio = None,
    layers: options.Layers = None,
    compat: options.CompatOption = None,
) -> None:
    """Turn statistics into importances, one vector per axis and layer; higher = keep.

    Not for methods that score weights inside prune (magnitude, wanda, sparsegpt).
    """
    report = options.settings(context)
    folder, stats = options.from_stdin(model, stats)
    given = options.chosen_options(method, context, ("score",))
    if stats:
        options.refuse(context, options.DATA, "is not read: --stats is what was made of it")
    options.refuse_tokenizer(context, context.params["data"])

    from prunecli import api

    made = api.score(
        folder or "",
        out,
        method=method,
        options=given,
        data=options.data_of(context.params),
        amount=options.amount_of(context.params),
        stats=stats,
        compat=options.follows_official(context, registry.get(method).quirks is not None),
        compute=options.compute_of(context.params),
        output=options.output(context.params),
        report=report,
    )
    console.print_made(made, context.params)


EXAMPLES = (("From statistics", "score --method flap --stats s.safetensors in/ c.safetensors"),)
