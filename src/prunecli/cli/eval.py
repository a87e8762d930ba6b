"""`prunecli eval`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.errors import UsageError
from prunecli.settings import Compute, Data, Made


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="IN...", help="model folders, hf:org/name, or -")
    ],
    data: Annotated[
        list[str] | None,
        option(
            "data",
            "D to measure on, may be repeated: builtin[:part], a .txt/.jsonl/.parquet file or "
            "folder, FILE.safetensors:NAME, a named set, or hf:org/name[:split[:column]] "
            "[builtin:evaluation]",
            metavar="D",
        ),
    ] = None,
    sampler: options.Sampler = None,
    nsamples: options.Nsamples = None,
    seq_len: options.SeqLen = None,
    tokenizer: options.Tokenizer = None,
    out: Annotated[
        str | None, option("out", "also write the sidecar there", metavar="F.json")
    ] = None,
    allow_overlap: Annotated[
        bool, option("allow-overlap", "accept windows that the model was calibrated on")
    ] = False,
    seed: options.Seed = Data.seed,
    device: options.Device = Compute.device,
    dtype: options.Dtype = Compute.dtype,
    buffer: options.Buffer = Compute.buffer,
    threads: options.Threads = None,
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Measure loss (nats per token) and perplexity on held-out tokens, with fp32 logits."""
    report = options.settings(context, quiet=quiet, verbose=verbose)
    folders = options.read_paths() if models == ["-"] else models
    if "-" in folders:
        raise UsageError("stdin ('-') must be the only IN")
    if out is not None and (len(folders) > 1 or not out.endswith(".json")):
        raise UsageError(f"--out takes one IN and a .json file, got {len(folders)} and '{out}'")
    from prunecli.evaluation.perplexity import evaluate as measure

    made: list[Made] = []
    try:
        for folder in folders:
            made.append(
                measure(
                    folder,
                    data=[options.data_of(context.params, d) for d in data or [Data.source]],
                    allow_overlap=allow_overlap,
                    out=out,
                    compute=options.compute_of(context.params),
                    output=options.output(force, skip_existing, dry_run),
                    report=report,
                )
            )
    finally:
        # what was measured before a failure is not lost
        if made:
            _print(made, json or dry_run)


def _print(made: list[Made], as_json: bool) -> None:
    if as_json:
        objects = [console.as_object(one) for one in made]
        many = {"results": [{"path": o["path"], "results": o["results"]} for o in objects]}
        print(jsonlib.dumps(objects[0] if len(objects) == 1 else many))
        return
    headings = ["model", "source", "tokens", "loss", "perplexity"]
    rows = [
        [
            one.path,
            row["source"],
            str(row["tokens"]),
            f"{row['loss']:.6f}",
            console.plain(row["perplexity"]),
        ]
        for one in made
        for row in one.results["data"]
    ]
    console.print_columns(headings, rows)


EXAMPLES = (
    ("Perplexity on the built-in text", "eval out/"),
    ("On token windows, as JSON", "eval --data tokens.safetensors:eval --json out/"),
    ("Several models, results kept", "eval --out out.json --data text.txt out/"),
)
