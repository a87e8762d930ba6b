"""`prunecli table`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import console, options, records, streams
from prunecli.cli.options import option

TABLE = "Table"
FIGURE = "Figure"
ADVICE = "Advice"


COMPARISON: options.Group = {
    "format": (Annotated[str, option("format", "how to print the table", TABLE)], "rich"),
    "layout": (
        Annotated[
            str | None,
            option(
                "layout",
                "models (one row each), pairs (pruned beside scratch), table1, table2, table5, "
                "table6, table7, table5-7, table9 to table16, or scaling (tables 12-15) "
                "[default: models; with --reference table2]",
                TABLE,
                metavar="NAME",
            ),
        ],
        None,
    ),
    "reference": (
        Annotated[
            str | None, option("reference", "the paper's own results, alone or beside yours", TABLE)
        ],
        None,
    ),
    "figure": (
        Annotated[
            str | None,
            option(
                "figure",
                "draw one of the paper's figures: 1 both settings, 3 loss by tokens, 4 by size, 5 "
                "equal total budget; or sweep: pruned models by ratio and size, or plan: which "
                "layers, heads and weights are kept; in the terminal, or into --plot FILE",
                FIGURE,
            ),
        ],
        None,
    ),
    "plot": (
        Annotated[
            str | None,
            option(
                "plot", "draw the figure into this .png, .svg or .pdf file", FIGURE, metavar="FILE"
            ),
        ],
        None,
    ),
    "html": (
        Annotated[
            str | None,
            option(
                "html",
                "write a report of tables, figures, histories and commands",
                TABLE,
                metavar="FILE.html",
            ),
        ],
        None,
    ),
    "advise": (
        Annotated[
            bool,
            option(
                "advise",
                "fit the measured curves and recommend pruning or training from scratch",
                ADVICE,
            ),
        ],
        False,
    ),
    "budget": (
        Annotated[
            float | None,
            option(
                "budget",
                "tokens of training that --advise may spend [default: the most measured]",
                ADVICE,
                metavar="N",
                min=1,
            ),
        ],
        None,
    ),
    "force": (options.Force, False),
}


@options.with_options(COMPARISON, options.VERBOSITY, options.CONFIG)
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
) -> None:
    """Compare runs in tables and figures.

    The paper's results can stand beside yours. Folders are searched to any depth. Evaluations are
    matched to models by id. Differences are shown only for token-matched models; (...) marks those
    within noise. A terminal shows as many columns as it has room for, a pipe gets all of them.
    """
    report, values = records.setup(context), context.params
    from prunecli.tables.table import TableRequest
    from prunecli.tables.table import table as verb

    request = TableRequest(
        tuple(records.read_paths() if paths == ["-"] else paths or ()),
        **{name: values[name] for name in COMPARISON if name != "force"},
        width=console.width(),
    )
    made = verb(request, records.run_context(values, None, report))
    as_json = values["json"] and made.results is not None
    streams.result(jsonlib.dumps({"results": made.results}) if as_json else made.text)


EXAMPLES = (
    ("everything below a folder", "table runs/"),
    ("pruned beside scratch", "table --layout pairs runs/"),
    ("Table 16 of the paper", "table --layout table16 --reference paper --format csv"),
    ("plot your own runs", "table --figure 3 --plot tokens.svg runs/"),
    ("how far can each method go?", "table --figure sweep runs/"),
    ("what a plan keeps", "table --figure plan --plot kept.png plan.json"),
    ("a report to share", "table --layout table16 --html report.html runs/"),
    ("prune, or train from scratch?", "table --advise --budget 50e9 runs/"),
)
