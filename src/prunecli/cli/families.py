"""`prunecli families`."""

import json as jsonlib

import typer

from prunecli.cli import console, options, streams
from prunecli.model.families import registry


def families(context: typer.Context, json: options.Json = False) -> None:
    """List the supported model families.

    A model belongs to one by the model_type of its config.json.
    """
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


EXAMPLES = (("as JSON", "families --json"),)
