"""Loss and perplexity: the mean over windows x (length - 1) predicted tokens, fp32 logits."""

from collections.abc import Iterable
from math import exp, isfinite
from typing import Any

from prunecli.data import windows
from prunecli.errors import InputError, NotANumber
from prunecli.files import provenance
from prunecli.files.sidecar import Input
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Data


def read(checkpoint: Checkpoint, source: Data, report: Report) -> "windows.Tokens":
    """Return the windows of a source for this model, of its evaluation split by default."""
    return windows.load(
        source,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )


def refuse_overlap(checkpoint: Checkpoint, tokens: "windows.Tokens") -> None:
    """Raise InputError if this model, or an ancestor, was calibrated or trained on a window."""
    record = checkpoint.sidecar
    if record is None:
        return
    inputs = [entry for step in record.history for entry in step.inputs]
    shared, what = calibration_overlap(inputs, tokens), "calibrated"
    own = provenance.trained_on(tokens.meta)
    if not shared and own is not None:
        shared, what = provenance.overlap(own, checkpoint.trained), "trained"
    if shared:
        raise InputError(
            f"{shared} of {len(tokens.windows)} evaluation windows were {what} on",
            "evaluate on other text, or use --allow-overlap",
        )


def calibration_overlap(inputs: Iterable[Input], tokens: "windows.Tokens") -> int:
    """Return how many windows are among the calibration windows of these inputs."""
    used = [entry.model_extra or {} for entry in inputs if entry.role == "calibration"]
    seen = {window for meta in used for window in meta.get("windows", [])}
    shared, own = len(seen & set(tokens.windows)), provenance.trained_on(tokens.meta)
    if shared or own is None:
        return shared
    # long sets of rows are not recorded window by window
    return provenance.overlap(own, filter(None, map(provenance.trained_on, used)))


def result(tokens: "windows.Tokens", losses: list[float]) -> dict[str, Any]:
    """Return the results of one source from its windows' summed losses in nats.

    Raises NotANumber if the model's outputs are NaN or infinite.
    """
    length = tokens.ids.shape[1]
    predicted = len(losses) * (length - 1)
    loss = sum(losses) / predicted
    if not isfinite(loss):
        raise NotANumber(f"the loss on '{tokens.meta['source']}' is {loss}", "is the model intact?")
    return {
        "source": tokens.meta["source"],
        "digest": tokens.meta["digest"],
        "windows": len(losses),
        "seq_len": length,
        "tokens": predicted,
        "loss": loss,
        "perplexity": exp(loss) if loss < 700 else float("inf"),
        "window_losses": [window / (length - 1) for window in losses],
    }


def noise(times: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the greatest differences between repeated results, in nats: `loss`, `window_loss`."""
    windows = zip(*(one["window_losses"] for one in times), strict=True)
    return {
        "repeats": len(times),
        "loss": spread(one["loss"] for one in times),
        "window_loss": max(map(spread, windows)),
    }


def spread(values: Iterable[float]) -> float:
    """Return the greatest difference between any two values."""
    known = list(values)
    return max(known) - min(known)
