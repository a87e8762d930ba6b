"""`prunecli table`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options, records
from prunecli.cli.options import option
from prunecli.errors import UsageError

TABLE = "Table"
FIGURE = "Figure"
ADVICE = "Advice"


@options.with_options(options.VERBOSITY, options.CONFIG)
def table(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SIDECAR|DIR...]",
            help="sidecars, or folders to search, or - for stdin; none with --reference paper",
            show_default=False,
        ),
    ] = None,
    format: Annotated[str, option("format", "how to print the table", TABLE)] = "rich",
    layout: Annotated[
        str | None,
        option(
            "layout",
            "models (one row each), pairs (pruned beside scratch), table1, table2, table5, "
            "table6, table7, table5-7, table9 to table16, or scaling (tables 12-15) "
            "[default: models; with --reference table2]",
            TABLE,
            metavar="NAME",
        ),
    ] = None,
    reference: Annotated[
        str | None, option("reference", "the paper's own results, alone or beside yours", TABLE)
    ] = None,
    figure: Annotated[
        str | None,
        option(
            "figure",
            "draw one of the paper's figures: 1 both settings, 3 loss by tokens, 4 by size, 5 "
            "equal total budget; in the terminal, or into --plot FILE",
            FIGURE,
        ),
    ] = None,
    plot: Annotated[
        str | None,
        option("plot", "draw the figure into this .png, .svg or .pdf file", FIGURE, metavar="FILE"),
    ] = None,
    html: Annotated[
        str | None,
        option(
            "html",
            "write one report of tables, figures, lineages and commands",
            TABLE,
            metavar="FILE.html",
        ),
    ] = None,
    advise: Annotated[
        bool,
        option(
            "advise",
            "fit the measured curves and recommend pruning or training from scratch",
            ADVICE,
        ),
    ] = False,
    budget: Annotated[
        float | None,
        option(
            "budget",
            "tokens of training that --advise may spend [default: the most measured]",
            ADVICE,
            metavar="N",
            min=1,
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Compare runs in tables and figures.

    The paper's results can stand beside yours. Folders are searched to any depth. Evaluations are
    matched to models by id. Differences are shown only for token-matched models; (...) marks those
    within noise.
    """
    report = records.setup(context)
    if budget is not None and not advise:
        raise UsageError("--budget belongs to --advise")
    if advise and (layout or figure or plot or html):
        raise UsageError(
            "--advise prints advice only", "leave out --layout, --figure, --plot, --html"
        )
    given = records.read_paths() if paths == ["-"] else paths or []
    from prunecli.tables import table

    models = table.found(given, reference)
    if advise:
        from prunecli.tables.advice import advise as advised

        found = advised(models, reference, budget)
        print(jsonlib.dumps({"results": found.results}) if context.params["json"] else found.text)
        return
    written = records.output(context.params)
    for name, path in (("plot", plot), ("html", html)):
        if path is not None:
            table.check_file(name, path, written)
    made = table.tabled(models, layout, reference)
    if html is not None:
        from prunecli.tables.page import write

        write(html, models, made, reference)
    if plot is not None or figure is not None:
        from prunecli.tables import figures

        number = figure or figures.figure_of(layout)
        layout = layout or figures.FIGURES[number].layouts[0]
        drawing = figures.drawing(table.chosen(models, layout, reference), number)
        if plot is None:
            print(drawing.in_terminal())
            return
        drawing.save(plot)
    if plot is None and html is None:
        print(
            jsonlib.dumps({"results": made.objects()})
            if context.params["json"]
            else made.render(format)
        )
    else:
        for path in filter(None, (plot, html)):
            report.detail(f"wrote {path}")
            print(path)


EXAMPLES = (
    ("everything below a folder", "table runs/"),
    ("pruned beside scratch", "table --layout pairs runs/"),
    ("Table 16 of the paper", "table --layout table16 --reference paper --format csv"),
    ("plot your own runs", "table --figure 3 --plot tokens.svg runs/"),
    ("a report to share", "table --layout table16 --html report.html runs/"),
    ("prune, or train from scratch?", "table --advise --budget 50e9 runs/"),
)
