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
    """Return the windows of D for this model, of its evaluation part unless D says otherwise."""
    return windows.load(
        source,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )


def refuse_overlap(checkpoint: Checkpoint, found: "windows.Tokens") -> None:
    """Raise InputError if this model, or an ancestor, was calibrated or trained on a window."""
    record = checkpoint.sidecar
    if record is None:
        return
    used = [entry for step in record.history for entry in step.inputs]
    shared, what = calibrated(used, found), "calibrated"
    own = provenance.trained_on(found.meta)
    if not shared and own is not None:
        shared, what = provenance.overlap(own, checkpoint.trained), "trained"
    if shared:
        raise InputError(
            f"{shared} of {len(found.windows)} evaluation windows were {what} on",
            "evaluate on other text, or --allow-overlap",
        )


def calibrated(inputs: Iterable[Input], found: "windows.Tokens") -> int:
    """Return how many windows are among those that these inputs were calibrated on."""
    used = [entry.model_extra or {} for entry in inputs if entry.role == "calibration"]
    seen = {window for meta in used for window in meta.get("windows", [])}
    shared, own = len(seen & set(found.windows)), provenance.trained_on(found.meta)
    if shared or own is None:
        return shared
    # long sets of rows are not recorded window by window
    return provenance.overlap(own, filter(None, map(provenance.trained_on, used)))


def result(found: "windows.Tokens", windows: list[float]) -> dict[str, Any]:
    """Return the figures of one D; raise NotANumber if the model's outputs are no numbers."""
    length = found.ids.shape[1]
    predicted = len(windows) * (length - 1)
    loss = sum(windows) / predicted
    if not isfinite(loss):
        raise NotANumber(f"the loss on '{found.meta['source']}' is {loss}", "is the model intact?")
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


def noise(times: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the greatest differences between figures of one D, in nats: `loss`, `window_loss`."""
    windows = zip(*(told["window_losses"] for told in times), strict=True)
    return {
        "repeats": len(times),
        "loss": spread(told["loss"] for told in times),
        "window_loss": max(map(spread, windows)),
    }


def spread(values: Iterable[float]) -> float:
    """Return the greatest difference between any two values."""
    known = list(values)
    return max(known) - min(known)
