"""States of a run in OUT.partial, by torch's distributed checkpoints: whole or absent.

A state that N processes wrote can be read by any other number of processes. Its index and its
numbers are pickles, of which only those are read that need no code to run.
"""

import io
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from prunecli.errors import InputError, PruneError, of_system
from prunecli.files import output, regular
from prunecli.training.loop import Loop
from prunecli.training.objective import full_tensor

NAME = "step-{:08}"
STEP = re.compile(r"step-(\d{8,12})")
INDEX = ".metadata"
FILE = re.compile(r"__\d{1,9}_\d{1,9}\.distcp")  # as torch calls the files beside the index

# what an index of torch's checkpoints is made of, by module
INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}  # fmt: skip


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
    return sorted(path for path in folder.glob("step-*") if STEP.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Return after how many steps a state was saved."""
    return int(path.name.split("-")[1])


def load(path: Path, loop: Loop, name: str) -> None:
    """Load a state into the loop; raise InputError when it cannot be read.

    `name` is the folder's in messages.
    """
    state = _state(loop)
    # all that is no tensor follows from the options: the groups of parameters are the loop's own
    groups = state["optimizer"].pop("param_groups")
    try:
        reader = _Reader(path)
        reader.read_metadata()  # the loader would log what it cannot read, and look elsewhere
        with _without_warning():
            state_dict_loader.load(
                state,
                storage_reader=reader,
                planner=_Planner(),
                no_dist=loop.ranks.mesh is None,
            )
        _check(state)
        set_state_dict(
            loop.objective.trainable,
            loop.optimizer,
            model_state_dict=state["model"],
            optim_state_dict={**state["optimizer"], "param_groups": groups},
        )
        loop.order.check()
    except (Exception, CheckpointException) as error:  # the latter is none of the former
        # a damaged file can make the library raise anything
        raise InputError(
            f"cannot read the state '{path.name}' in '{name}': {_cause(error)}",
            "remove it to resume from the state before"
            if len(saved_states(path.parent)) > 1
            else "use --restart to start over",
        ) from error


def _unsaved(step: int, folder: Path, error: CheckpointException) -> PruneError:
    """Return what is told of a state that cannot be saved, and what to do about it."""
    why, remedy = _cause(error), "rerun the same command to resume from the state before"
    cause: BaseException | None = _first(error)
    # what torch tells of a file that it could not write to the end comes of what the system refused
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        cause.filename = cause.filename or str(folder)
        refusal = of_system(cause)
        why, remedy = refusal.what, "; ".join(filter(None, [refusal.remedy, remedy]))
    return PruneError(f"cannot save the state after step {step}: {why}", remedy)


def _member(kind: Any, name: str) -> Enum:
    """Return a member of an enum: Python 3.11.2, Debian's, pickles it as a call of getattr."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"it asks for '{name}' of what is no enum")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    """Makes an index out of a pickle, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _check_memo(content: bytes) -> None:
    """Raise UnpicklingError where a pickle numbers its memo otherwise than one by one.

    The memo is an array, which a large number makes as large.
    """
    memo = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "MEMOIZE":
            memo += 1
        elif opcode.name.endswith("PUT"):
            number = int(argument or 0)
            if not 0 <= number <= memo:
                raise pickle.UnpicklingError(f"its memo jumps from {memo} to {number}")
            memo = max(memo, number + 1)


class _Reader(FileSystemReader):
    """torch's reader of a checkpoint's folder, which runs no code of its index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index."""
        content = regular.content(Path(self.path) / INDEX)
        _check_memo(content)
        index = _Unpickler(io.BytesIO(content)).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError("it is no index of a checkpoint")
        for place in (index.storage_data or {}).values():
            if not (isinstance(place, _StorageInfo) and FILE.fullmatch(place.relative_path)):
                raise pickle.UnpicklingError("it names what is no file beside it")
        return index


class _Planner(DefaultLoadPlanner):
    """torch's loader of tensors: none of them is a pickle, which could run code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Raise UnpicklingError: nothing else is asked for."""
        raise pickle.UnpicklingError(f"'{read_item.dest_index.fqn}' is no tensor")


def _first(error: BaseException) -> BaseException:
    """Return the error of the first process, where several tell theirs."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error


def _cause(error: BaseException) -> str:
    """Return an error in a line; that of the first process, where several tell theirs."""
    error = _first(error)
    if isinstance(error, InputError):
        return error.what
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _without_warning() -> Iterator[None]:
    """Silence the warning that one process saves alone, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _check(state: dict[str, Any]) -> None:
    """Raise ValueError where the optimizer has taken a negative number of steps."""
    for name, moments in state["optimizer"]["state"].items():
        steps = moments.get("step")
        if steps is not None and not float(full_tensor(steps)) >= 0:
            raise ValueError(f"'{name}' has taken {float(full_tensor(steps))} steps")


def _state(loop: Loop) -> dict[str, Any]:
    model, optimizer = get_state_dict(loop.objective.trainable, loop.optimizer)
    return {"model": model, "optimizer": optimizer, "order": loop.order.state()}
