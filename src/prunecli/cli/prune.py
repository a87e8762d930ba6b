"""`prunecli prune`."""

from dataclasses import replace
from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.cli.signals import first_signal
from prunecli.methods import registry
from prunecli.training import world


@options.takes(
    options.AMOUNT,
    options.DATA,
    options.METHOD,
    options.STREAM,
    options.OUTPUT,
    options.TALK,
    options.CONFIG,
)
def prune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to write")],
    method: Annotated[str | None, option("method", "pruning method", metavar="M")] = None,
    recipe: Annotated[
        str | None,
        option("recipe", "calibration set and settings of the paper, or of the official code"),
    ] = None,
    stats: options.Stats = None,
    scores: Annotated[str | None, option("scores", "scores made by score", metavar="F")] = None,
    plan: Annotated[
        str | None, option("plan", "carry out this plan; no amount is needed", metavar="F")
    ] = None,
    plan_only: Annotated[
        bool, option("plan-only", "write the plan to OUT.json instead of pruning")
    ] = False,
    keep: Annotated[
        str | None, option("keep", "keep statistics, scores and plan in this folder", metavar="DIR")
    ] = None,
    restart: options.Restart = False,
    compat: options.CompatOption = None,
) -> None:
    """Prune a model into a folder that stock transformers loads.

    Give one amount: --ratio, --sparsity N:M, exact sizes, --params or --arch; or a --plan. Without
    --stats or --scores the calibration text is read and the earlier steps are taken here.
    Sequential methods (wanda, sparsegpt, wanda-sp) see pruned predecessors; --stats is their
    knowing one-pass variant. sheared-llama trains masks and weights: stopped, the same command goes
    on; under torchrun the model is sharded over all processes.
    """
    first = world.is_first()
    report = options.settings(context, silent=not first)
    folder, stats, scores, plan, arch = options.from_stdin(
        model, stats, scores, plan, context.params["arch"]
    )
    given = options.chosen_options(method, context)
    if plan is not None:
        # what a variable or a file says for all runs has no say in a plan that is made
        given = {k: v for k, v in given.items() if k == "bias" or options.typed(context, k)}
    if stats or scores or (plan and method is None):
        said = "--stats" if stats else "--scores" if scores else "--plan"
        options.refuse(context, options.DATA, f"is not read: {said} is what was made of it")
    options.refuse_tokenizer(context, context.params["data"])
    from prunecli import api

    # what learns is stopped between two steps, everything else at once
    learns = method is not None and registry.get(method).learned
    quirks = method is not None and plan is None and registry.get(method).quirks is not None
    with first_signal(report, wanted=learns) as stop:
        made = api.prune(
            folder or "",
            out,
            method=method,
            amount=options.amount_of({**context.params, "arch": arch}),
            options=given,
            data=replace(options.data_of(context.params), asked=options.asked(context)),
            recipe=recipe,
            stats=stats,
            scores=scores,
            plan=plan,
            plan_only=plan_only,
            keep=keep,
            compat=options.follows_official(context, quirks),
            compute=options.compute_of(context.params),
            output=options.output(context.params),
            restart=restart,
            report=report,
            stop=stop,
        )
    if first:
        console.print_made(made, context.params)


EXAMPLES = (
    ("Half of every block, on the built-in text", "prune --method flap --ratio 0.5 in/ out/"),
    ("2 of every 4", "prune --method wanda --sparsity 2:4 --data t.safetensors:calib in/ out/"),
    ("The paper's calibration set", "prune --method sparsegpt --ratio 0.5 --recipe paper in/ out/"),
    ("An exact shape", "prune --method minitron-width --hidden 3072 --ffn 9216 in/ out/"),
    ("In a pipe", "prune --method magnitude --ratio 0.5 in/ p/ | prunecli eval -"),
)
