"""States of a run in OUT.partial, by torch's distributed checkpoints: whole or absent.

A state that N processes wrote can be read by any other number of processes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from prunecli.errors import InputError, PruneError, of_system
from prunecli.files import output
from prunecli.training.loop import Loop

NAME = "step-{:08}"


def save(folder: Path, step: int, loop: Loop, keep: int) -> None:
    """Save the state after `step` steps, then drop all but the last `keep` states.

    All processes must take part. Raises PruneError when it cannot be written.
    """
    final = folder / NAME.format(step)
    temporary = folder / f".{final.name}.tmp"
    if loop.ranks.is_main:
        output.remove(temporary)
        temporary.mkdir()
    loop.ranks.barrier()
    loop.masks.check()
    try:
        with _without_warning():
            state_dict_saver.save(
                _state(loop), checkpoint_id=temporary, no_dist=loop.ranks.mesh is None
            )
    except CheckpointException as error:
        raise _unsaved(step, temporary, error) from error
    if loop.ranks.is_main:
        output.publish(temporary, final)
        for path in saved_states(folder)[:-keep]:
            output.remove(path)
    loop.ranks.barrier()


def saved_states(folder: Path) -> list[Path]:
    """Return the states in a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def step_of(path: Path) -> int:
    """Return after how many steps a state was saved."""
    return int(path.name.split("-")[1])


def load(path: Path, loop: Loop, name: str) -> None:
    """Load a state into the loop; raise InputError when it cannot be read.

    `name` is the folder's in messages.
    """
    state = _state(loop)
    try:
        with _without_warning():
            state_dict_loader.load(state, checkpoint_id=path, no_dist=loop.ranks.mesh is None)
    except CheckpointException as error:
        raise InputError(
            f"cannot read the state '{path.name}' in '{name}': {_cause(error)}",
            "remove it to resume from the state before"
            if len(saved_states(path.parent)) > 1
            else "use --restart to start over",
        ) from error
    set_state_dict(
        loop.objective.trainable,
        loop.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def _unsaved(step: int, folder: Path, error: CheckpointException) -> PruneError:
    """Return what is told of a state that cannot be saved, and what to do about it."""
    why, remedy = _cause(error), "rerun the same command to resume from the state before"
    cause = _first(error)
    if isinstance(cause, OSError):
        cause.filename = cause.filename or str(folder)
        refusal = of_system(cause)
        why, remedy = refusal.what, "; ".join(filter(None, [refusal.remedy, remedy]))
    return PruneError(f"cannot save the state after step {step}: {why}", remedy)


def _first(error: CheckpointException) -> BaseException:
    """Return the error of the first process that failed."""
    return next(iter(error.failures.values()))[0]


def _cause(error: CheckpointException) -> str:
    """Return the error of the first process that failed, in words."""
    cause = _first(error)
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence the warning that one process saves alone, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _state(loop: Loop) -> dict[str, Any]:
    model, optimizer = get_state_dict(loop.objective.trainable, loop.optimizer)
    return {"model": model, "optimizer": optimizer, "order": loop.order.state()}
