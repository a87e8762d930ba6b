"""`prunecli table`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.options import option
from prunecli.errors import UsageError


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
            "models: one row each; pairs: pruned beside scratch, and if token-matched; or one of "
            "the paper's tables (scaling: 12-15) [models; with --reference: table2]",
        ),
    ] = None,
    reference: Annotated[
        str | None, option("reference", "the paper's own rows, alone or beside ours")
    ] = None,
    figure: Annotated[
        str | None,
        option(
            "figure",
            "one of the paper's figures: 1 both settings, 3 against tokens, 4 against size, "
            "5 equal total budget; drawn in the terminal unless --plot names a file",
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
            "write one report of tables, figures, lineages and commands",
            metavar="FILE.html",
        ),
    ] = None,
    advise: Annotated[
        bool, option("advise", "tell from the measured curves whether to prune or to train")
    ] = False,
    budget: Annotated[
        float | None,
        option("budget", "tokens that --advise may spend on training [the most measured]", min=1),
    ] = None,
    force: options.Force = False,
) -> None:
    """Print sidecars as one of the paper's tables, with its own rows if asked; draw its figures.

    Folders are searched to any depth. An evaluation meets its model by id. Differences stand only
    between models that are proven token-matched; those inside their noise are in brackets.
    """
    report = options.settings(context)
    if budget is not None and not advise:
        raise UsageError("--budget belongs to --advise")
    if advise and (layout or figure or plot or html):
        raise UsageError(
            "--advise prints advice only", "leave out --layout, --figure, --plot, --html"
        )
    given = options.read_paths() if paths == ["-"] else paths or []
    from prunecli.tables import table

    models = table.found(given, reference)
    if advise:
        from prunecli.tables.advice import advise as advised

        found = advised(models, reference, budget)
        print(jsonlib.dumps({"results": found.results}) if context.params["json"] else found.text)
        return
    written = options.output(context.params)
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
    ("Everything below a folder", "table runs/"),
    ("Pruned against scratch", "table --layout pairs runs/"),
    ("The paper's Table 16", "table --layout table16 --reference paper --format csv"),
    ("A figure of one's own runs", "table --figure 3 --plot tokens.svg runs/"),
    ("A report for others", "table --layout table16 --html report.html runs/"),
    ("Prune or train", "table --advise --budget 50e9 runs/"),
)
