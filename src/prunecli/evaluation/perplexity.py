"""Loss and perplexity: the mean over windows x (length - 1) predicted tokens, fp32 logits."""

from math import exp, isfinite
from typing import Any

from prunecli.errors import InputError, PruneError
from prunecli.io import rows, tokens
from prunecli.io.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Data


def read(checkpoint: Checkpoint, source: Data, report: Report) -> "tokens.Tokens":
    """Return the windows of D for this model, of its evaluation part unless D says otherwise."""
    return tokens.load(
        source,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )


def refuse_overlap(checkpoint: Checkpoint, found: "tokens.Tokens") -> None:
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


def result(found: "tokens.Tokens", windows: list[float]) -> dict[str, Any]:
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
