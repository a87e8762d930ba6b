"""`prunecli methods`."""

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli import console, help, options, streams
from prunecli.methods import registry
from prunecli.methods._base import Method

if TYPE_CHECKING:
    from prunecli.tables.render import Row, Table


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
    chosen = [registry.get(one) for one in ([name] if name else registry.names())]
    if json:
        streams.result(jsonlib.dumps({"results": [_record(method) for method in chosen]}, indent=1))
    elif name:
        streams.result(help.of_method(chosen[0], context.make_formatter()))
    else:
        console.print_table(_table(chosen), "rich", as_json=False)


def _table(methods: list[Method]) -> "Table":
    from prunecli.tables.render import Column, Table

    columns = (
        Column("method", "method", repeats=True),
        Column("removes", "removes"),
        Column("sequential", "sequential", detail=True),
        Column("options", "options", detail=True),
        Column("reference", "reference"),
    )
    rows: list[Row] = [
        {
            "method": method.name,
            "removes": method.granularity,
            "sequential": "yes" if method.sequential else "no",
            "options": " ".join(option.flag for option in method.options),
            "reference": method.reference,
        }
        for method in methods
    ]
    return Table(rows, columns, whole="methods NAME")


def _record(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "reference": method.reference,
        "package": registry.source(method.name),
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
