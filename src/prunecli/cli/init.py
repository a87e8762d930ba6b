"""`prunecli init`."""

from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option


def init(
    context: typer.Context,
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    config: Annotated[
        str, typer.Option("--config", help="config.json of the model", metavar="FILE.json")
    ],
    tokenizer: Annotated[
        str,
        option(
            "tokenizer",
            "folder to copy it from, bytes (one token a byte), none, or auto: bytes where the "
            "vocabulary has room",
        ),
    ] = "auto",
    seed: options.Seed = 0,
    dtype: Annotated[
        str, option("dtype", "storage type; auto is the config's, else float32")
    ] = "auto",
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a checkpoint with random weights from a config.json, such as a tiny Llama for CI."""
    report = options.settings(context, quiet=quiet, verbose=verbose)
    from prunecli import initialise

    made = initialise.init(
        config,
        out,
        seed=seed,
        dtype=dtype,
        tokenizer=tokenizer,
        output=options.output(force, skip_existing, dry_run),
        report=report,
    )
    console.print_made(made, json, dry_run)


EXAMPLES = (("A tiny model", "init --config tiny.json tiny/"),)
