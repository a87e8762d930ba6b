"""`prunecli score`."""

from typing import Annotated, Any

import typer

from prunecli.cli import console, options
from prunecli.cli.options import option
from prunecli.settings import Compute, Data


@options.with_method_options
def score(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="IN", help="model folder, hf:org/name, or -")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="file to write")],
    method: Annotated[str, option("method", "pruning method", metavar="M")],
    stats: options.Stats = None,
    data: options.DataOption = Data.source,
    sampler: options.Sampler = None,
    nsamples: options.Nsamples = None,
    seq_len: options.SeqLen = None,
    tokenizer: options.Tokenizer = None,
    ratio: options.Ratio = None,
    layers: options.Layers = None,
    compat: options.CompatOption = None,
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
    **method_options: Any,
) -> None:
    """Turn statistics into importances, one vector per axis and layer; higher = keep.

    Not for methods that score weights inside prune (magnitude, wanda, sparsegpt).
    """
    report = options.settings(context, quiet=quiet, verbose=verbose)
    folder, stats = options.from_stdin(model, stats)
    given = options.chosen_options(method, method_options)
    from prunecli import pipeline

    made = pipeline.score(
        folder or "",
        out,
        method=method,
        options=given,
        data=options.data_of(context.params, data),
        amount=options.amount_of(context.params),
        stats=stats,
        compat=compat is not None,
        compute=options.compute_of(context.params),
        output=options.output(force, skip_existing, dry_run),
        report=report,
    )
    console.print_made(made, json, dry_run)


EXAMPLES = (("From statistics", "score --method flap --stats s.safetensors in/ c.safetensors"),)
