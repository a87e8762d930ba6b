"""`prunecli table`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.options import option


def table(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="SIDECAR|DIR...", help="files or folders, or -")
    ],
    format: Annotated[str, option("format", "how to print it")] = "rich",
    layout: Annotated[
        str,
        option(
            "layout", "models: one row each; pairs: pruned beside scratch, and if token-matched"
        ),
    ] = "models",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Print one row per model and measurement from any set of sidecars.

    Folders are searched to any depth. An evaluation meets its model by id.
    """
    options.settings(context, quiet=quiet, verbose=verbose)
    from prunecli.tables import table as collect

    found = collect(options.read_paths() if paths == ["-"] else paths, layout)
    print(jsonlib.dumps({"results": found.rows}) if json else found.render(format))


EXAMPLES = (
    ("Everything below a folder", "table runs/"),
    ("Pruned against scratch", "table --layout pairs runs/"),
    ("For a paper", "table --format tex runs/"),
)
