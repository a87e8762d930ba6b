"""Trackers: TensorBoard, Weights & Biases, trackio. Each is an extra and loaded when asked for."""

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
    """Sends figures somewhere; `folder` is where files go, `name` what the run is called."""

    def __init__(self, kind: str, folder: Path, name: str, options: dict[str, Any]) -> None:
        module = library(kind)
        self._writer: Any = None
        if kind == TRACKERS[0]:
            self._writer = module.SummaryWriter(str(folder))
        else:
            # both have the same interface: init, log, finish
            self._run: Any = module.init(project="prunecli", name=name, config=options)

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Send the figures of a step."""
        if self._writer is not None:
            for key, value in figures.items():
                self._writer.add_scalar(key, value, step)
        else:
            self._run.log(figures, step=step)

    def close(self) -> None:
        """Send what waits."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._run.finish()


def open_tracker(
    kind: str | None, folder: Path, name: str, options: dict[str, Any]
) -> Tracker | None:
    """Return the tracker that was asked for, if any."""
    return None if kind is None else Tracker(kind, folder, name, options)
