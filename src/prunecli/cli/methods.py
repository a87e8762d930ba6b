"""`prunecli methods`."""

import json as jsonlib
from typing import Annotated, Any

import typer

from prunecli.cli import console, help, options
from prunecli.methods import registry
from prunecli.methods._base import Method


def methods(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="method to explain, with its options")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the pruning methods, or explain one.

    With --json, options, defaults and recipes are in the object too.
    """
    found = [registry.get(one) for one in ([name] if name else registry.names())]
    if name is not None and not json:
        print(help.of_method(found[0], context.make_formatter()))
        return
    if json:
        print(jsonlib.dumps({"results": [_record(method) for method in found]}, indent=1))
        return
    console.print_columns(
        ["method", "removes", "sequential", "options", "reference"],
        [
            [
                method.name,
                method.granularity,
                "yes" if method.sequential else "no",
                " ".join(option.flag for option in method.options),
                method.reference,
            ]
            for method in found
        ],
    )


def _record(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "reference": method.reference,
        "removes": method.granularity,
        "unit": method.unit,
        "axes": method.axes,
        "sequential": method.sequential,
        "statistics": {need.name: need.points for need in method.needs},
        "options": [
            {
                "name": option.name.replace("_", "-"),
                "type": option.type.__name__,
                "default": option.default,
                "choices": option.choices,
                "help": option.help,
            }
            for option in method.options
        ],
        "recipes": method.recipes,
        "compat": ["official"] if method.quirks is not None else [],
    }


EXAMPLES = (
    ("what flap's options do", "methods flap"),
    ("all of them as JSON", "methods --json"),
)
