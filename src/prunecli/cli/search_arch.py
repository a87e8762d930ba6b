"""`prunecli search-arch`."""

import json as jsonlib
from dataclasses import replace
from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import option
from prunecli.cli.signals import first_signal
from prunecli.errors import UsageError
from prunecli.methods import registry

SEARCH_PANEL = "What to search"
EVAL_PANEL = "Evaluation data"

BUDGET: options.Group = {
    **options.only(options.AMOUNT, "params", "ratio"),
    "flops": (
        Annotated[
            float | None,
            option("flops", "at most this many FLOPs per forward of 2048 tokens", metavar="N"),
        ],
        None,
    ),
    "multiple": (
        Annotated[
            int | None,
            option(
                "multiple",
                "hidden and FFN sizes are multiples of this [default: 128 at hidden size 4096, "
                "less below]",
                metavar="N",
                min=1,
            ),
        ],
        None,
    ),
}

HELD_OUT: options.Group = {
    "eval_data": (
        Annotated[
            str,
            option(
                "eval-data",
                "held-out data that candidates are compared on, in windows as of --data",
                EVAL_PANEL,
                metavar="DATA",
            ),
        ],
        "builtin:evaluation",
    ),
    "allow_overlap": (
        Annotated[
            bool,
            option("allow-overlap", "accept held-out text that is also in --data", EVAL_PANEL),
        ],
        False,
    ),
}


@options.with_options(
    options.under(SEARCH_PANEL, {**BUDGET, **options.COMPAT}),
    options.DATA,
    HELD_OUT,
    options.METHOD,
    options.STREAM,
    options.OUTPUT,
    options.RESTART,
    options.VERBOSITY,
    options.CONFIG,
)
def search_arch(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="IN", help="model folder, hf:org/name, or - for stdin")
    ] = None,
    out: Annotated[str | None, typer.Argument(metavar="OUT.json", help="file to write")] = None,
    method: Annotated[
        str | None,
        option("method", "pruning method, see `prunecli methods`", SEARCH_PANEL, metavar="NAME"),
    ] = None,
    paper: Annotated[
        bool,
        option(
            "paper", "print the candidates of the paper's Tables 5-7; needs no IN", SEARCH_PANEL
        ),
    ] = False,
    format: Annotated[str, option("format", "how --paper prints", SEARCH_PANEL)] = "csv",
) -> None:
    """Find the lowest-loss architecture within a budget.

    The budget is --params, --flops or --ratio. Every candidate is the parent pruned in memory, and
    evaluated on held-out text; sheared-llama trains masks for each. OUT.json is what `prune --arch`
    reads; it lists all candidates. Rerun the same command to resume.
    """
    report = records.setup(context)
    values = context.params
    if paper:
        searching = values.keys() - {*options.VERBOSITY, *options.CONFIG, "paper", "format"}
        if any(records.is_explicit(context, name) for name in searching):
            raise UsageError(
                "--paper needs no model and no budget", "remove IN, OUT and the search options"
            )
        from prunecli.tables.reference import searched

        found = searched()
        print(
            jsonlib.dumps({"results": found.objects()}) if values["json"] else found.render(format)
        )
        return
    records.refuse(context, ["format"], "only sets how --paper prints")
    if model is None or out is None or method is None:
        raise UsageError("search-arch needs --method NAME IN OUT.json, or --paper")
    (folder,) = records.from_stdin(model)
    explicit = records.chosen_options(method, context)
    from prunecli import api

    own = records.data_of(values)
    records.refuse_tokenizer(context, own.source, values["eval_data"])
    with first_signal(report, wanted=registry.get(method).learned) as stop:
        run = records.run_context(values, out, report, stop)
        made = api.search_arch(
            folder or "",
            out,
            method=method,
            params=values["params"],
            flops=values["flops"],
            ratio=values["ratio"],
            multiple=values["multiple"],
            options=explicit,
            data=own,
            eval_data=replace(own, source=values["eval_data"]),
            allow_overlap=values["allow_overlap"],
            compat=records.follows_official(context, registry.get(method).quirks is not None),
            restart=run.output.restart,
            compute=run.compute,
            output=run.output,
            report=run.report,
            stop=run.stop,
        )
    console.print_made(made, values)


EXAMPLES = (
    (
        "the best architecture of 4.54 billion parameters",
        "search-arch --method minitron-width --params 4.54e9 in/ arch.json",
    ),
    ("then prune to it", "prune --method minitron-width --arch arch.json in/ out/"),
    ("the candidates in the paper", "search-arch --paper"),
)
