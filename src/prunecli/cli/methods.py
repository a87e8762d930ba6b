"""`prunecli methods`."""

import json as jsonlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli import console, options
from prunecli.methods import registry
from prunecli.methods._base import Method

if TYPE_CHECKING:
    from prunecli.tables.render import Row, Table


def methods(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a method, with its options explained")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the pruning methods, or explain one; with --json options, defaults and recipes too."""
    chosen = [registry.get(one) for one in ([name] if name else registry.names())]
    if json:
        print(jsonlib.dumps({"results": [_record(method) for method in chosen]}, indent=1))
    elif name:
        print("\n".join(_explained(chosen[0], console.width())))
    else:
        console.print_table(_table(chosen), "rich", as_json=False)


def _explained(method: Method, width: int | None) -> Iterator[str]:
    from prunecli.tables.text import filled

    yield filled(f"{method.name}: {method.title} ({method.reference})", width)
    order = "layer by layer" if method.sequential else "in one pass"
    yield filled(f"removes {method.granularity}, {order}", width)
    for option in method.options:
        values = "|".join(option.choices) or option.type.__name__.upper()
        default = "" if option.default in (None, False, "") else f" [default: {option.default}]"
        yield ""
        yield option.flag if option.type is bool else f"{option.flag} {values}"
        yield filled(f"    {option.help}{default}", width, "")


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
    ("The options of one method", "methods flap"),
    ("All methods with options and defaults", "methods --json"),
)
