"""`prunecli search-arch`."""

from dataclasses import replace
from typing import Annotated

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import option
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
                "hidden and FFN sizes are multiples of N [default: 128 at hidden size 4096, less "
                "below, but 32 from 512 on]",
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
    options.PROBE,
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
    format: Annotated[str, option("format", "how --paper prints", SEARCH_PANEL)] = "rich",
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

        console.print_table(searched(), format, values["json"])
        return
    records.refuse(context, ["format"], "only sets how --paper prints")
    if model is None or out is None or method is None:
        raise UsageError("search-arch needs --method NAME IN OUT.json, or --paper")
    from prunecli.pruning.search_arch import SearchRequest
    from prunecli.pruning.search_arch import search_arch as verb

    (folder,) = records.from_stdin(model)
    explicit = records.chosen_options(method, context)
    data, chosen = records.data_of(values), registry.get(method)
    records.refuse_tokenizer(context, data.source, values["eval_data"])
    request = SearchRequest(
        model=folder or "",
        method=method,
        options=explicit,
        data=data,
        eval_data=replace(data, source=values["eval_data"]),
        compat=records.follows_official(context, chosen.quirks is not None),
        **{name: values[name] for name in (*BUDGET, "allow_overlap")},
    )
    made = verb(request, records.run_context(values, out, report))
    console.print_made(made, values, f"prune --method {method} --arch {{out}} IN OUT")


EXAMPLES = (
    (
        "the best architecture of 4.54 billion parameters",
        "search-arch --method minitron-width --params 4.54e9 in/ arch.json",
    ),
    ("then prune to it", "prune --method minitron-width --arch arch.json in/ out/"),
    ("the candidates in the paper", "search-arch --paper --format csv"),
)
