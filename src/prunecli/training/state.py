"""States of a run in OUT.partial, by torch's distributed checkpoints: whole or absent.

A state that N processes wrote is read by any other number.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from prunecli.errors import InputError, PruneError
from prunecli.files import output
from prunecli.training.loop import Loop

NAME = "step-{:08}"
LOG = "log.jsonl"


def save(folder: Path, step: int, loop: Loop, keep: int) -> None:
    """Save the state after `step` steps, then drop all but the last `keep` states.

    All processes must take part. Raises PruneError when it cannot be written.
    """
    final = folder / NAME.format(step)
    temporary = folder / f".{final.name}.tmp"
    if loop.ranks.first:
        output.remove(temporary)
        temporary.mkdir()
    loop.ranks.barrier()
    loop.masks.check()
    try:
        with _alone_is_fine():
            state_dict_saver.save(
                _state(loop), checkpoint_id=temporary, no_dist=loop.ranks.mesh is None
            )
    except CheckpointException as error:
        raise PruneError(
            f"cannot save the state after step {step}: {_cause(error)}",
            "the same command goes on from the state before",
        ) from error
    if loop.ranks.first:
        output.publish(temporary, final)
        for path in saved(folder)[:-keep]:
            output.remove(path)
    loop.ranks.barrier()


def saved(folder: Path) -> list[Path]:
    """Return the states in a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def step_of(path: Path) -> int:
    """Return how many steps were done when a state was saved."""
    return int(path.name.split("-")[1])


def load(path: Path, loop: Loop, name: str) -> None:
    """Make a state that of the loop; raise InputError when it cannot be read.

    The user knows its folder as `name`.
    """
    state = _state(loop)
    try:
        with _alone_is_fine():
            state_dict_loader.load(state, checkpoint_id=path, no_dist=loop.ranks.mesh is None)
    except CheckpointException as error:
        raise InputError(
            f"cannot read the state '{path.name}' in '{name}': {_cause(error)}",
            "remove it to go on from the one before"
            if len(saved(path.parent)) > 1
            else "--restart begins anew",
        ) from error
    set_state_dict(
        loop.objective.trained,
        loop.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def _cause(error: CheckpointException) -> str:
    """Return what went wrong on the first process that failed."""
    cause, _ = next(iter(error.failures.values()))
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Silence the warning that one process saves alone, which is what it should do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _state(loop: Loop) -> dict[str, Any]:
    model, optimizer = get_state_dict(loop.objective.trained, loop.optimizer)
    return {"model": model, "optimizer": optimizer, "order": loop.order.state()}


class Log:
    """One JSON line per step. Lines of steps that no state holds are dropped on resuming."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / LOG
        self.lines = self._read(steps)
        output.replace_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = self.path.open("a", encoding="utf-8")

    def _read(self, steps: int) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text("utf-8", "replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break  # the line that was being written when the run was killed
            if line["step"] > steps:
                break
            found.append(line)
        return found

    def add(self, line: dict[str, Any]) -> None:
        """Write a line at once."""
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk, before a state that counts on the lines."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Stop writing."""
        self._file.close()
