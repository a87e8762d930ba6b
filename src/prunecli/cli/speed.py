"""`prunecli speed`."""

from typing import Annotated, Any

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.settings import Result, Timing

TIMED = (
    *("measure", "batch_size", "decode_tokens", "warmup", "rounds", "compile"),
    *("device", "dtype", "threads", "seed"),
)


@options.takes(options.COMPUTE, options.OUTPUT, options.TALK, options.CONFIG)
def speed(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="IN...", help="model folders, hf:org/name, or -")
    ],
    base: Annotated[
        str | None, option("base", "model to compare with, in the same process", metavar="DIR")
    ] = None,
    flops_only: Annotated[
        bool, option("flops-only", "count only: needs a config.json and no weights")
    ] = False,
    seq_len: Annotated[
        int | None,
        option("seq-len", "tokens of a forward [counted: 2048, timed: at most 512]", min=1),
    ] = None,
    sparsity: Annotated[
        str | None,
        option("sparsity", "count block linears as that sparse: N:M or a fraction [the sidecar's]"),
    ] = None,
    compat: Annotated[
        str | None, option("compat", "official: sparse FLOPs as the paper's Table 9 prints them")
    ] = None,
    measure: Annotated[
        str, option("measure", "what to time, of prefill, decode and train", metavar="Q,Q...")
    ] = ",".join(Timing.quantities),
    batch_size: Annotated[
        int, option("batch-size", "sequences at once", min=1)
    ] = Timing.batch_size,
    decode_tokens: Annotated[
        int, option("decode-tokens", "tokens to decode after a prompt", min=1)
    ] = Timing.decode_tokens,
    warmup: Annotated[int, option("warmup", "passes that are not counted", min=0)] = Timing.warmup,
    rounds: Annotated[int, option("rounds", "passes that are", min=1)] = Timing.rounds,
    compile: Annotated[bool, option("compile", "time models after torch.compile")] = False,
    out: Annotated[
        str | None, option("out", "also write the sidecar there", metavar="F.json")
    ] = None,
) -> None:
    """Count parameters, FLOPs and cache bytes; time prefill, decoding and training steps.

    A speedup is the median over rounds of the base's time over this model's, both taken in turns;
    models beside a base are loaded twice, in either order, and measured for so many rounds each.
    """
    report, values = options.settings(context), context.params
    folders = options.models_of(models, out)
    from prunecli.measuring.speed import SpeedRequest
    from prunecli.measuring.speed import speed as verb

    quantities = tuple(filter(None, (name.strip() for name in measure.split(","))))
    _refuse_idle(context, quantities)
    timing = Timing(quantities, batch_size, decode_tokens, warmup, rounds, compile, values["seed"])
    run = options.run_context(values, out, report)
    made: list[Result] = []
    try:
        for folder in folders:
            request = SpeedRequest(
                folder, base, timing, seq_len, sparsity, flops_only, compat == "official"
            )
            made.append(verb(request, run))
            kernels = made[-1].results.get("measured", {}).get("semi_structured")
            if kernels and "dense" not in kernels.partition(":")[2]:
                report.note(f"{folder}: sparse kernels {kernels}")
    finally:
        # what was measured before a failure is not lost
        if made:
            _print(made, values["json"] or values["dry_run"])


def _refuse_idle(context: typer.Context, quantities: tuple[str, ...]) -> None:
    """Raise UsageError for options that nothing would read."""
    if context.params["flops_only"]:
        options.refuse(context, TIMED, "is about timing, which --flops-only leaves out")
    if "decode" not in quantities:
        options.refuse(context, ["decode_tokens"], "is about decoding, which --measure leaves out")
    if context.params["out"] is None:
        options.refuse(context, ("force", "skip_existing"), "is about the file of --out")


def _print(made: list[Result], as_json: bool) -> None:
    if as_json:
        console.print_objects(made)
        return
    headings = ["model", "parameters", "non-zero", "FLOPs", "training FLOPs", "for tokens"]
    rows = [
        [
            one.path,
            *(str(one.results[k]) for k in ("params", "nonzero", "flops", "flops_train")),
            *(str(one.results[k]) for k in ("flops_tokens", "kv_bytes_per_token")),
        ]
        for one in made
    ]
    console.print_columns([*headings, "KV bytes/token"], rows)
    groups = list(made[0].results["params_by_group"])
    print()
    console.print_columns(
        ["model", *groups],
        [[one.path, *(str(one.results["params_by_group"][g]) for g in groups)] for one in made],
    )
    timed = [_timed(one, quantity) for one in made for quantity in _quantities(one)]
    if timed:
        print()
        headings = ["model", "quantity", "tokens/s", "seconds", "min s", "max s"]
        console.print_columns([*headings, "speedup", "min x", "max x", "peak MB"], timed)


def _quantities(made: Result) -> list[str]:
    return [k for k, v in made.results.get("measured", {}).items() if isinstance(v, dict)]


def _timed(made: Result, quantity: str) -> list[str]:
    measured: dict[str, Any] = made.results["measured"]
    found = measured[quantity]
    ratio = [found["speedup"], *found["speedup_spread"]] if "speedup" in found else []
    return [
        made.path,
        quantity,
        f"{found['tokens_per_second']:.1f}",
        *(f"{value:.4f}" for value in (found["seconds"], *found["seconds_spread"])),
        *([f"{value:.3f}" for value in ratio] or [""] * 3),
        f"{measured['peak_bytes'] / 1e6:.0f}",
    ]


EXAMPLES = (
    ("Counts from a config.json alone", "speed --flops-only --seq-len 2048 in/"),
    ("A pruned model beside its parent", "speed --base in/ out/"),
    (
        "The paper's rule for sparse models",
        "speed --flops-only --sparsity 2:4 --compat official in/",
    ),
)
