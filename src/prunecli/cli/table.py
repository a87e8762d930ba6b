"""`prunecli table`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.settings import RunContext


@options.takes(options.TALK, options.CONFIG)
def table(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SIDECAR|DIR...]",
            help="files or folders, or -; none are needed with --reference paper",
            show_default=False,
        ),
    ] = None,
    format: Annotated[str, option("format", "how to print it")] = "rich",
    layout: Annotated[
        str | None,
        option(
            "layout",
            "models: a row per model; pairs: pruned beside scratch models of its size; or one of "
            "the paper's tables (scaling: 12-15) [default: models; with --reference: table2]",
        ),
    ] = None,
    reference: Annotated[
        str | None, option("reference", "the paper's own rows, alone or beside yours")
    ] = None,
    figure: Annotated[
        str | None,
        option(
            "figure",
            "one of the paper's figures: 1 both settings, 3 against tokens, 4 against size, "
            "5 equal total budget; drawn as text unless --plot names a file",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        option("plot", "draw the figure into this file", metavar="FILE.(png|svg|pdf)"),
    ] = None,
    html: Annotated[
        str | None,
        option(
            "html",
            "write a report of tables, figures, histories and commands",
            metavar="FILE.html",
        ),
    ] = None,
    advise: Annotated[
        bool,
        option("advise", "fit the measured curves and recommend pruning or training from scratch"),
    ] = False,
    budget: Annotated[
        float | None,
        option(
            "budget",
            "tokens that --advise may spend on training [default: the most measured]",
            min=1,
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Compare runs in tables and figures, optionally beside the paper's results.

    Folders are searched to any depth. Evaluations are matched to models by id. Differences are
    shown only for token-matched models; (…) marks those within noise. A terminal shows as many
    columns as it has room for, a pipe gets all of them.
    """
    report = options.settings(context)
    from prunecli.tables.table import TableRequest
    from prunecli.tables.table import table as compare

    request = TableRequest(
        paths=tuple(options.read_paths() if paths == ["-"] else paths or ()),
        layout=layout,
        reference=reference,
        format=format,
        figure=figure,
        plot=plot,
        html=html,
        advise=advise,
        budget=budget,
        width=console.width(),
    )
    made = compare(request, RunContext(options.output(context.params), report=report))
    as_json = context.params["json"] and made.results is not None
    print(jsonlib.dumps({"results": made.results}) if as_json else made.text)


EXAMPLES = (
    ("Everything below a folder", "table runs/"),
    ("Pruned against scratch", "table --layout pairs runs/"),
    ("The paper's Table 16", "table --layout table16 --reference paper --format csv"),
    ("Plot your own runs", "table --figure 3 --plot tokens.svg runs/"),
    ("A report for others", "table --layout table16 --html report.html runs/"),
    ("Prune or train", "table --advise --budget 50e9 runs/"),
)
