"""Experiment trackers: TensorBoard, Weights & Biases, trackio. Each is an optional extra."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from prunecli.errors import UsageError, suggest

TRACKERS = ("tensorboard", "wandb", "trackio")


def library(kind: str) -> ModuleType:
    """Return a tracker's library; raise UsageError if it is unknown or not installed."""
    if kind not in TRACKERS:
        raise UsageError(f"unknown tracker '{kind}'{suggest(kind, list(TRACKERS))}")
    try:
        return import_module("torch.utils.tensorboard" if kind == TRACKERS[0] else kind)
    except ImportError:
        raise UsageError(
            f"--track {kind} is not installed", f"pip install 'prunecli[{kind}]'"
        ) from None


class Tracker:
    """Logs metrics to a tracker, as the run `name`; `folder` is for files."""

    def __init__(self, kind: str, folder: Path, name: str, options: dict[str, Any]) -> None:
        module = library(kind)
        self._writer: Any = None
        if kind == TRACKERS[0]:
            self._writer = module.SummaryWriter(str(folder))
        else:
            # both have the same interface: init, log, finish
            self._run: Any = module.init(project="prunecli", name=name, config=options)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a step."""
        if self._writer is not None:
            for key, value in metrics.items():
                self._writer.add_scalar(key, value, step)
        else:
            self._run.log(metrics, step=step)

    def close(self) -> None:
        """Flush what was logged."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._run.finish()


def open_tracker(
    kind: str | None, folder: Path, name: str, options: dict[str, Any]
) -> Tracker | None:
    """Return the tracker of this kind, if one is named."""
    return None if kind is None else Tracker(kind, folder, name, options)
