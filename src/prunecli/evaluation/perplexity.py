"""Loss and perplexity: the mean over windows x (length - 1) predicted tokens, fp32 logits.

The model is streamed layer by layer, so a checkpoint larger than memory can be evaluated.
"""

from math import exp, isfinite
from typing import Any

from prunecli.errors import InputError, PruneError
from prunecli.io import output as place
from prunecli.io import rows, sidecar, tokens
from prunecli.io.checkpoint import Checkpoint
from prunecli.io.sidecar import Recorder
from prunecli.pipeline import check_device
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Data, Made, Output
from prunecli.writing import FLOPS_TOKENS


def evaluate(
    model: str,
    *,
    data: list[Data] | None = None,
    allow_overlap: bool = False,
    out: str | None = None,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Made:
    """Measure one checkpoint on each D; with `out`, write the sidecar there as JSON.

    Results: `loss` (nats per token), `perplexity` and `tokens` (predicted) of the first D, and
    `data`, a list with the same for every D, `window_losses` included.
    Raises InputError if a window was calibrated on, unless `allow_overlap`.
    """
    compute, output = compute or Compute(), output or Output()
    recorder = Recorder("eval", output.argv)
    checkpoint = Checkpoint(model)
    if out is not None:
        place.check_place(out, output, [checkpoint.folder])
    sources = data or [Data()]
    if output.dry_run:
        return Made(model, results={"data": [source.source for source in sources]})
    check_device(compute)
    read = [_read(checkpoint, source, report) for source in sources]
    if not allow_overlap:
        for found in read:
            _refuse_overlap(checkpoint, found)
    inputs = [checkpoint.as_input(checkpoint.digest(report))]
    inputs += [sidecar.tokens_input("evaluation", t.meta, t.windows) for t in read]
    options = {"dtype": compute.dtype, "allow_overlap": allow_overlap}
    if out is not None and (
        same := place.same_already(out, output, sidecar.key("eval", options, inputs))
    ):
        return Made(model, same.sidecar, same.results)

    from prunecli.stats import run

    runner = run.Runner(checkpoint, compute, report)
    measured = []
    for found in read:
        windows = run.sequence_losses(runner, found.ids)
        measured.append(_result(found, windows.tolist()))
    arch = checkpoint.arch
    made_by = checkpoint.sidecar.results if checkpoint.sidecar else {}
    results = {
        **{name: measured[0][name] for name in ("loss", "perplexity", "tokens")},
        "data": measured,
        "params": arch.total_params,
        "flops": made_by.get("flops", arch.flops(FLOPS_TOKENS)),
        "flops_tokens": FLOPS_TOKENS,
    }
    record = recorder.sidecar(
        "eval",
        options,
        inputs,
        outputs={},
        results=results,
        parent=checkpoint.sidecar,
        device=str(runner.device),
    )
    if out is not None:
        place.write_json(out, record.text())
    return Made(model, record.dump(), results)


def _read(checkpoint: Checkpoint, source: Data, report: Report) -> "tokens.Tokens":
    return tokens.load(
        source,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )


def _refuse_overlap(checkpoint: Checkpoint, found: "tokens.Tokens") -> None:
    """Raise InputError if this model, or an ancestor, was calibrated or trained on a window."""
    record = checkpoint.sidecar
    if record is None:
        return
    seen = {
        window
        for step in record.history
        for entry in step.inputs
        if entry.role == "calibration"
        for window in (entry.model_extra or {}).get("windows", [])
    }
    shared, what = len(seen & set(found.windows)), "calibrated"
    own = rows.trained_on(found.meta)
    if not shared and own is not None:
        shared = rows.overlap(own, checkpoint.trained)
        what = "trained"
    if shared:
        raise InputError(
            f"{shared} of {len(found.windows)} evaluation windows were {what} on",
            "evaluate on other text, or --allow-overlap",
        )


def _result(found: "tokens.Tokens", windows: list[float]) -> dict[str, Any]:
    """Return the figures of one D; raise PruneError if the model's outputs are no numbers."""
    length = found.ids.shape[1]
    predicted = len(windows) * (length - 1)
    loss = sum(windows) / predicted
    if not isfinite(loss):
        raise PruneError(f"the loss on '{found.meta['source']}' is {loss}", "is the model intact?")
    return {
        "source": found.meta["source"],
        "digest": found.meta["digest"],
        "windows": len(windows),
        "seq_len": length,
        "tokens": predicted,
        "loss": loss,
        "perplexity": exp(loss) if loss < 700 else float("inf"),
        "window_losses": [window / (length - 1) for window in windows],
    }
