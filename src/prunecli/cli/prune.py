"""`prunecli prune`."""

import shlex
from dataclasses import replace
from typing import Annotated, Any

import typer

from prunecli.cli import console, options, records
from prunecli.cli.options import DATA_PANEL, STEPS_PANEL, option
from prunecli.errors import UsageError
from prunecli.methods import registry
from prunecli.methods._base import Method
from prunecli.settings import Result

RECIPE: options.Group = {
    "recipe": (
        Annotated[
            str | None,
            option(
                "recipe",
                "calibration data and settings of the paper, or of the official implementation",
                DATA_PANEL,
            ),
        ],
        None,
    )
}

STEPS: options.Group = {
    **options.STATS,
    "scores": (
        Annotated[
            str | None,
            option("scores", "scores from `prunecli score`", STEPS_PANEL, metavar="F"),
        ],
        None,
    ),
    "plan": (
        Annotated[
            str | None,
            option(
                "plan",
                "apply a plan from --plan-only (replaces --ratio etc.)",
                STEPS_PANEL,
                metavar="F",
            ),
        ],
        None,
    ),
    "plan_only": (
        Annotated[
            bool, option("plan-only", "write the plan to OUT.json, prune nothing", STEPS_PANEL)
        ],
        False,
    ),
    "keep": (
        Annotated[
            str | None,
            option(
                "keep",
                "save statistics, scores and plan to this folder",
                STEPS_PANEL,
                metavar="DIR",
            ),
        ],
        None,
    ),
}


WRAPPER: options.Group = {
    "keep_wrapper": (
        Annotated[
            bool,
            option(
                "keep-wrapper",
                "of a multimodal model, write all parts, not the language model alone",
                options.OUTPUT_PANEL,
            ),
        ],
        False,
    ),
}


@options.with_options(
    options.AMOUNT,
    options.COMPAT,
    options.DATA,
    RECIPE,
    STEPS,
    options.METHOD,
    options.STREAM,
    WRAPPER,
    options.OUTPUT,
    options.RESTART,
    options.PROBE,
    options.VERBOSITY,
    options.CONFIG,
)
def prune(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or - for stdin")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    method: Annotated[str | None, options.METHOD_NAME] = None,
) -> None:
    """Prune a model; OUT loads in unmodified transformers.

    Give one amount (--ratio, --sparsity N:M, sizes to keep, --params or --arch) or a --plan.
    Statistics are collected from --data, unless --stats or --scores holds them already.

    Sequential methods (wanda, sparsegpt, wanda-sp) prune layer by layer, on the outputs of already
    pruned layers; with --stats they use the dense model's statistics. sheared-llama trains masks
    and weights.

    The progress of a long run is saved in OUT.partial. Rerun the same command to resume. Under
    torchrun, processes divide the rows of --data, and such a run saves nothing; the model of
    sheared-llama is sharded over them.
    """
    report = records.setup(context)
    values = context.params
    folder, stats, scores, plan, arch = records.from_stdin(
        model, values["stats"], values["scores"], values["plan"], values["arch"]
    )
    explicit = records.chosen_options(method, context)
    if plan is not None:
        # what a variable or a file says for all runs has no say in a plan that is made
        explicit = {
            k: v for k, v in explicit.items() if k == "bias" or records.is_explicit(context, k)
        }
    if stats or scores or (plan and method is None):
        source = "--stats" if stats else "--scores" if scores else "--plan"
        records.refuse(context, options.DATA, f"cannot be combined with {source}")
    records.refuse_tokenizer(context, values["data"])
    from prunecli.pruning.prune import prune as verb
    from prunecli.pruning.request import PruneRequest

    chosen = registry.get(method) if method is not None else None
    multiple = records.multiple_of(context, chosen)
    quirks = chosen is not None and plan is None and chosen.quirks is not None
    request = PruneRequest(
        model=folder or "",
        method=method,
        options=explicit,
        amount=records.amount_of({**values, "arch": arch, "multiple": multiple}),
        data=replace(records.data_of(values), asked=records.asked(context)),
        recipe=values["recipe"],
        stats=stats,
        scores=scores,
        plan=plan,
        plan_only=values["plan_only"],
        keep=values["keep"],
        compat=records.follows_official(context, quirks),
        keep_wrapper=values["keep_wrapper"],
    )
    run = records.run_context(values, out, report, records.command_line(context))
    _print(verb(request, run), values, _search(chosen, explicit, values))


def _print(made: Result, values: dict[str, Any], search: str) -> None:
    """Print what was made, and what may come next."""
    then = "prune --plan {out} IN OUT" if values["plan_only"] else "eval {out}"
    console.print_made(made, values, then)
    if search:
        console.hint(search, values, "other sizes of that amount may lose less")


def _search(method: Method | None, options: dict[str, Any], values: dict[str, Any]) -> str:
    """Return the command that looks for other sizes than a bare amount gives; "" if none is quick.

    A search that trains masks for every shape takes hours.
    """
    from prunecli.pruning.search_arch import check_searchable

    amount = next((name for name in ("ratio", "params") if values[name] is not None), None)
    if method is None or method.trains_masks or amount is None or values["plan"] is not None:
        return ""
    try:
        check_searchable(method, method.resolve(options))
    except UsageError:
        return ""
    model = "IN" if values["model"] == "-" else shlex.quote(values["model"])
    budget = f"--{amount} {console.plain(values[amount])}"
    return f"search-arch --method {method.name} {budget} {model} arch.json"


EXAMPLES = (
    ("half of every block, on the built-in text", "prune --method flap --ratio 0.5 in/ out/"),
    ("2 of every 4 weights", "prune --method wanda --sparsity 2:4 --data text/ in/ out/"),
    (
        "the paper's calibration data",
        "prune --method sparsegpt --ratio 0.5 --recipe paper in/ out/",
    ),
    ("exact sizes", "prune --method minitron-width --hidden 3072 --ffn 9216 in/ out/"),
    ("in a pipe", "prune --method magnitude --ratio 0.5 in/ p/ | prunecli eval -"),
)
