"""`prunecli calibrate`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import PRUNE_PANEL, option
from prunecli.errors import UsageError
from prunecli.methods import registry


@options.with_options(
    options.only(options.AMOUNT, "ratio", "layers"),
    options.COMPAT,
    options.DATA,
    options.STREAM,
    options.OUTPUT,
    options.RESTART,
    options.PROBE,
    options.VERBOSITY,
    options.CONFIG,
)
def calibrate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or - for stdin")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="file to write")],
    methods: Annotated[
        str,
        option("for", "methods to collect for, with commas", PRUNE_PANEL, metavar="NAME[,NAME...]"),
    ],
) -> None:
    """Collect calibration statistics of the dense model.

    One pass serves any number of methods. --ratio or --layers is for minitron-depth, which tests
    removing every contiguous block of that many layers.

    The progress of a long run is saved in OUT.safetensors.partial. Rerun the same command to
    resume.
    """
    report = records.setup(context)
    values = context.params
    (folder,) = records.from_stdin(model)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise UsageError("--for names no method", "see `prunecli methods`")
    records.refuse_tokenizer(context, values["data"])

    collected = any(need.compat for name in names for need in registry.get(name).needs)
    from prunecli.pruning.calibrate import CalibrateRequest
    from prunecli.pruning.calibrate import calibrate as verb

    request = CalibrateRequest(
        folder or "",
        names,
        records.data_of(values),
        records.amount_of(values),
        records.follows_official(context, collected),
    )
    then = "score --method NAME --stats {out} IN OUT.safetensors"
    console.print_made(verb(request, records.run_context(values, out, report)), values, then)


EXAMPLES = (
    (
        "for two methods, on the built-in text",
        "calibrate --for flap,minitron-width in/ s.safetensors",
    ),
    ("on your own text", "calibrate --for flap --data text/ --seq-len 2048 in/ s.safetensors"),
)
