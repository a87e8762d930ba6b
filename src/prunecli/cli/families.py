"""`prunecli families`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import console, options, streams
from prunecli.model.families import registry


def families(
    context: typer.Context,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            help="derive a record for the model in this folder, try it and print it",
            metavar="DIR",
            rich_help_panel=options.OUTPUT_PANEL,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the supported model families.

    A model belongs to one by the model_type of its config.json.

    With --probe, read the config.json of a model that belongs to none. Its record is derived from
    transformers' own class, tried on a tiny random model of that class, and printed as the file of
    a family, for a package of your own (examples/plugin). If that fails, what failed is printed on
    stderr.
    """
    if probe is not None:
        _probe(probe, json)
        return
    found = [registry.get(name) for name in registry.names()]
    if json:
        rows = [
            {
                "name": family.name,
                "package": registry.source(family.name),
                "model_types": family.model_types,
                "containers": family.containers,
                "biases": list(family.biases),
            }
            for family in found
        ]
        streams.result(jsonlib.dumps({"results": rows}, indent=1))
        return
    console.print_columns(
        ["family", "model_type", "saved as, if needed"],
        [[f.name, " ".join(f.model_types), " ".join(f.containers)] for f in found],
    )


def _probe(folder: str, json: bool) -> None:
    from prunecli.pruning.probe import probe

    streams.keep_apart(quiet=False)
    made = probe(folder, console.StderrReport(quiet=False, verbose=False))
    streams.result(jsonlib.dumps({"results": [made._asdict()]}) if json else made.text.rstrip())


EXAMPLES = (
    ("as JSON", "families --json"),
    ("a file for a family that is not among them", "families --probe in/"),
)
