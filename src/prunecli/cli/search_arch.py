"""`prunecli search-arch`."""

from dataclasses import replace
from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.cli.signals import first_signal
from prunecli.errors import UsageError
from prunecli.methods import registry


@options.takes(
    options.DATA, options.METHOD, options.STREAM, options.OUTPUT, options.TALK, options.CONFIG
)
def search_arch(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")
    ] = None,
    out: Annotated[str | None, typer.Argument(metavar="OUT.json", help="file to write")] = None,
    method: Annotated[str | None, option("method", "pruning method", metavar="M")] = None,
    params: options.Params = None,
    flops: Annotated[
        float | None, option("flops", "at most this many FLOPs per forward of 2048 tokens")
    ] = None,
    ratio: options.Ratio = None,
    multiple: Annotated[
        int | None,
        option(
            "multiple",
            "hidden and FFN sizes are multiples of this [128 at hidden 4096, less below]",
            min=1,
        ),
    ] = None,
    paper: Annotated[
        bool, option("paper", "print the candidates of the paper's Tables 5-7; needs no IN")
    ] = False,
    eval_data: Annotated[
        str, option("eval-data", "held-out D to judge shapes on, in windows as --data", metavar="D")
    ] = "builtin:evaluation",
    allow_overlap: Annotated[
        bool, option("allow-overlap", "accept held-out text that was calibrated on")
    ] = False,
    format: Annotated[str, option("format", "how --paper prints")] = "rich",
    restart: options.Restart = False,
    compat: options.CompatOption = None,
) -> None:
    """Search the shape of least loss within a budget: --params, --flops or --ratio.

    Every candidate is the parent cut to its shape in memory and judged by its loss on held-out
    text; sheared-llama learns masks for each. OUT.json is what `prune --arch` reads; it tells all
    candidates. Stopped, the same command goes on with the shapes that are left.
    """
    report = options.settings(context)
    if paper:
        searching = context.params.keys() - {*options.TALK, *options.CONFIG, "paper", "format"}
        if any(options.typed(context, name) for name in searching):
            raise UsageError(
                "--paper needs no model and no budget", "leave out IN, OUT and what to search"
            )
        from prunecli.tables.reference import searched

        console.print_table(searched(), format, context.params["json"])
        return
    options.refuse(context, ["format"], "is about how --paper prints")
    if model is None or out is None or method is None:
        raise UsageError("search-arch takes --method M IN OUT.json", "or --paper")
    (folder,) = options.from_stdin(model)
    given = options.chosen_options(method, context)
    from prunecli import api

    own = options.data_of(context.params)
    options.refuse_tokenizer(context, own.source, eval_data)
    with first_signal(report, wanted=registry.get(method).learned) as stop:
        made = api.search_arch(
            folder or "",
            out,
            method=method,
            params=params,
            flops=flops,
            ratio=ratio,
            multiple=multiple,
            options=given,
            data=own,
            eval_data=replace(own, source=eval_data),
            allow_overlap=allow_overlap,
            compat=options.follows_official(context, registry.get(method).quirks is not None),
            restart=restart,
            compute=options.compute_of(context.params),
            output=options.output(context.params),
            report=report,
            stop=stop,
        )
    console.print_made(made, context.params)


EXAMPLES = (
    (
        "The best 4.54 billion parameters",
        "search-arch --method minitron-width --params 4.54e9 --data c4 in/ arch.json",
    ),
    ("Then", "prune --method minitron-width --arch arch.json --data c4 in/ out/"),
    ("What the paper chose from", "search-arch --paper --format csv"),
)
