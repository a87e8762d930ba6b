"""`prunecli score`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.methods import registry


@options.with_options(
    options.only(options.AMOUNT, "ratio", "layers"),
    options.COMPAT,
    options.DATA,
    options.STATS,
    options.METHOD,
    options.STREAM,
    options.OUTPUT,
    options.RESTART,
    options.PROBE,
    options.VERBOSITY,
    options.CONFIG,
)
def score(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or - for stdin")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="file to write")],
    method: Annotated[str, options.METHOD_NAME],
) -> None:
    """Compute importance scores from statistics (higher = keep).

    OUT has one vector per axis and layer. Methods that score single weights inside prune
    (magnitude, wanda, sparsegpt) have no scores to write. --ratio or --layers is for
    minitron-depth, which scores contiguous blocks of layers.

    The progress of a long run is saved in OUT.safetensors.partial. Rerun the same command to
    resume.
    """
    report = records.setup(context)
    values = context.params
    folder, stats = records.from_stdin(model, values["stats"])
    explicit = records.chosen_options(method, context, ("score",))
    if stats:
        records.refuse(context, options.DATA, "cannot be combined with --stats")
        records.refuse(context, ["restart"], "is about statistics that are collected from --data")
    records.refuse_tokenizer(context, values["data"])

    from prunecli.pruning.score import ScoreRequest
    from prunecli.pruning.score import score as verb

    request = ScoreRequest(
        folder or "",
        method,
        explicit,
        records.data_of(values),
        records.amount_of(values),
        stats,
        records.follows_official(context, registry.get(method).quirks is not None),
    )
    then = f"prune --method {method} --scores {{out}} --ratio R IN OUT"
    console.print_made(verb(request, records.run_context(values, out, report)), values, then)


EXAMPLES = (
    ("from the text", "score --method flap --data text/ in/ c.safetensors"),
    ("from statistics", "score --method flap --stats s.safetensors in/ c.safetensors"),
)
