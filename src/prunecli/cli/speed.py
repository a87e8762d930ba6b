"""`prunecli speed`."""

from typing import Annotated, Any

import typer

from prunecli.cli import console, options, records, streams
from prunecli.cli.options import OUTPUT_PANEL, option
from prunecli.settings import Result, Timing

WHAT = "What to measure"
TIMING = "Timing"
TIMED = (
    *("measure", "batch_size", "decode_tokens", "warmup", "rounds", "compile"),
    *("device", "dtype", "threads", "seed"),
)


MEASUREMENT: options.Group = {
    "base": (
        Annotated[str | None, option("base", "model to compare with", WHAT, metavar="DIR")],
        None,
    ),
    "flops_only": (
        Annotated[bool, option("flops-only", "count, time nothing; a config.json is enough", WHAT)],
        False,
    ),
    "seq_len": (
        Annotated[
            int | None,
            option(
                "seq-len",
                "tokens per forward pass [default: counted 2048, timed at most 512]",
                WHAT,
                metavar="N",
                min=1,
            ),
        ],
        None,
    ),
    "sparsity": (
        Annotated[
            str | None,
            option(
                "sparsity",
                "count decoder-block weights at this sparsity, N:M or a fraction [default: the "
                "sidecar's]",
                WHAT,
                metavar="N:M|R",
            ),
        ],
        None,
    ),
    "compat": (
        Annotated[
            str | None, option("compat", "count sparse FLOPs as in Table 9 of the paper", WHAT)
        ],
        None,
    ),
    "measure": (
        Annotated[str, option("measure", "what to time", TIMING, metavar="prefill,decode,train")],
        ",".join(Timing.quantities),
    ),
    "batch_size": (
        Annotated[int, option("batch-size", "sequences per batch", TIMING, metavar="N", min=1)],
        Timing.batch_size,
    ),
    "decode_tokens": (
        Annotated[
            int,
            option(
                "decode-tokens", "tokens to decode after the prompt", TIMING, metavar="N", min=1
            ),
        ],
        Timing.decode_tokens,
    ),
    "warmup": (
        Annotated[int, option("warmup", "untimed warm-up passes", TIMING, metavar="N", min=0)],
        Timing.warmup,
    ),
    "rounds": (
        Annotated[int, option("rounds", "timed passes", TIMING, metavar="N", min=1)],
        Timing.rounds,
    ),
    "compile": (
        Annotated[bool, option("compile", "time models after torch.compile", TIMING)],
        False,
    ),
    "out": (
        Annotated[
            str | None,
            option("out", "also write the results to this file", OUTPUT_PANEL, metavar="FILE.json"),
        ],
        None,
    ),
}


@options.with_options(
    MEASUREMENT, options.COMPUTE, options.OUTPUT, options.VERBOSITY, options.CONFIG
)
def speed(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="model folders, hf:org/name, or - for stdin"),
    ],
) -> None:
    """Count parameters, FLOPs and cache bytes; measure speed.

    Times prefill, decoding and training steps. A speedup is the median over rounds of the base's
    time divided by this model's, timed in turns. Models compared with a base are loaded twice, in
    both orders, and timed for --rounds passes each time.
    """
    report, values = records.setup(context), context.params
    folders = records.models_of(models, values["out"])
    from prunecli.measuring.speed import SpeedRequest
    from prunecli.measuring.speed import speed as verb

    quantities = tuple(filter(None, (name.strip() for name in values["measure"].split(","))))
    _refuse_idle(context, quantities)
    timing = Timing(
        quantities,
        values["batch_size"],
        values["decode_tokens"],
        values["warmup"],
        values["rounds"],
        values["compile"],
        values["seed"],
    )
    run = records.run_context(values, values["out"], report)
    made: list[Result] = []
    try:
        for folder in folders:
            request = SpeedRequest(
                folder,
                values["base"],
                timing,
                values["seq_len"],
                values["sparsity"],
                values["flops_only"],
                values["compat"] == "official",
            )
            made.append(verb(request, run))
            kernels = made[-1].results.get("measured", {}).get("semi_structured")
            if kernels and "dense" not in kernels.partition(":")[2]:
                report.info(f"{folder}: sparse kernels {kernels}")
    finally:
        # what was measured before a failure is not lost
        if made:
            _print(made, values["json"] or values["dry_run"])


def _refuse_idle(context: typer.Context, quantities: tuple[str, ...]) -> None:
    """Raise UsageError for options that nothing would read."""
    if context.params["flops_only"]:
        records.refuse(context, TIMED, "is about timing, which --flops-only leaves out")
    if "decode" not in quantities:
        records.refuse(context, ["decode_tokens"], "is about decoding, which --measure leaves out")
    if context.params["out"] is None:
        records.refuse(context, ("force", "skip_existing"), "is about the file of --out")


COUNTS = {
    "params": "parameters",
    "active_params": "active",
    "nonzero": "non-zero",
    "flops": "FLOPs",
    "flops_train": "training FLOPs",
    "flops_tokens": "for tokens",
    "kv_bytes_per_token": "KV bytes/token",
}


def _print(made: list[Result], as_json: bool) -> None:
    if as_json:
        console.print_objects(made)
        return
    known = {key: heading for key, heading in COUNTS.items() if any(key in m.results for m in made)}
    console.print_columns(
        ["model", *known.values()],
        # without experts all parameters are active
        [[m.path, *(str(m.results.get(key, m.results["params"])) for key in known)] for m in made],
    )
    by_group = [one.results["params_by_group"] for one in made]
    groups = list(dict.fromkeys(group for counts in by_group for group in counts))
    streams.result()
    console.print_columns(
        ["model", *groups],
        [
            [one.path, *(str(counts.get(group, 0)) for group in groups)]
            for one, counts in zip(made, by_group, strict=True)
        ],
    )
    timed = [_timed(one, quantity) for one in made for quantity in _quantities(one)]
    if timed:
        streams.result()
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
    ("counts from a config.json alone", "speed --flops-only --seq-len 2048 in/"),
    ("a pruned model compared with its parent", "speed --base in/ out/"),
    (
        "sparse FLOPs as the paper counts them",
        "speed --flops-only --sparsity 2:4 --compat official in/",
    ),
)
