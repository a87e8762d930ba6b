"""Who may write OUT: one process at a time, which first clears up after those that died.

The lock is `flock` on a hidden file beside OUT, held from before the first look at OUT until the
verb ends. It is the kernel's, so it ends with its process however that dies; the file itself says
nothing. It is removed under the lock, and whoever opened it before that sees that the name has gone
from it and opens it anew: so nothing is left in a user's folder, and no two processes lock two
files of one name.

What is beside OUT while it is written has a name of its own, and exists under the lock only:

    .OUT.prunecli-tmp           being written, or on the way out: cleared
    .OUT.prunecli-new/          finished, on its way to OUT and OUT's sidecar: moved there
    .OUT.prunecli-old           the old OUT, while a new one takes its place: put back if OUT is
                                missing
    .OUT.partial.prunecli-tmp   the state of an unfinished run, on the way out: cleared

So whoever has the lock knows that the process that left these is dead, and asks no process number,
which another process may have by now, here or on another machine.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prunecli.errors import OutputExists, of_system
from prunecli.files import output, regular, world
from prunecli.settings import RunContext

LOCK = ".prunecli-lock"
TRIES = 100  # each fails only if another process removed its lock meanwhile

P = ParamSpec("P")
R = TypeVar("R")


def exclusive(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a verb run only while no other process writes its OUT; a dry run writes nothing.

    Of several processes of one run the first locks. If a dead run had finished OUT but for its last
    step, that step is done, and an equal run takes what is there as its own. The verb raises
    OutputExists if another process is at work.
    """

    @wraps(verb)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given: list[Any] = [*args, *kwargs.values()]
        run = next((one for one in given if isinstance(one, RunContext)), RunContext())
        with claimed(run, run.output.path) as completed:
            if completed and not run.output.force:
                taken = replace(run, output=replace(run.output, skip_existing=True))
                args = tuple(taken if one is run else one for one in args)  # type: ignore[assignment]
                kwargs.update({k: taken for k, one in kwargs.items() if one is run})
            return verb(*args, **kwargs)

    return alone


@contextmanager
def claimed(run: RunContext, *outs: str | None) -> Iterator[bool]:
    """Hold the locks of these files and folders; yield whether one was completed.

    Raises OutputExists if another process holds one, and PruneError where the system does not let
    write, then or in the block.
    """
    with _told(), ExitStack() as stack:
        completed = False
        if world.is_first() and not run.output.dry_run:
            # in one order: two runs that want the same two never wait, one gets both
            for out in sorted({out for out in outs if out and out.strip() and "\0" not in out}):
                path = regular.resolved(out)
                if stack.enter_context(_locked(path, out)):
                    completed |= _repaired(path, run.output.force)
        yield completed


@contextmanager
def _told() -> Iterator[None]:
    """Say of what the system refuses which path it is, and what to do."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads what is printed has left
    except OSError as error:
        raise of_system(error) from error


@contextmanager
def _locked(path: Path, out: str) -> Iterator[bool]:
    """Hold the lock of a path; yield False where nobody can write, which `check_path` refuses."""
    if not output.can_be_written(path):
        yield False
        return
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    lock = path.with_name(f".{path.name}{LOCK}")
    handle = _acquire(lock, out)
    try:
        yield True
    finally:
        try:
            if os.fstat(handle).st_size == 0:  # a file that holds something is not ours
                lock.unlink(missing_ok=True)
        finally:
            os.close(handle)
        for folder in made:
            with suppress(OSError):  # something is in it, as it should be
                folder.rmdir()


def _acquire(lock: Path, out: str) -> int:
    """Return the handle of a lock file that is locked and still has its name."""
    for _ in range(TRIES):
        try:
            output.make_folder(lock.parent)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # another process removed the folder that it had made
        try:
            with regular.named(lock):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        except BlockingIOError:
            os.close(handle)
            break
        except FileNotFoundError:
            pass  # removed before it was locked
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise OutputExists(f"another process is writing '{out}'", "wait for it, or choose another OUT")


def _repaired(path: Path, force: bool) -> bool:
    """Complete or clear what dead runs left of a locked path; return whether that made it."""
    partial = output.partial_of(str(path))
    new, old, *temporary = (
        output.sibling(path, output.NEW),
        output.sibling(path, output.OLD),
        output.sibling(path, output.TEMPORARY),
        output.sibling(partial, output.TEMPORARY),
    )
    for one in temporary:
        output.remove(one)
    for one in (new, old):
        # no run makes links, and what is new is in a folder
        if one.is_symlink() or (one == new and not one.is_dir()):
            output.remove(one)
    completed = new.exists()
    if completed:
        output.move_in(new, path)
        if output.mark_of(partial) is not None:
            output.discard(partial)  # the state of what is finished
    if old.exists() and path.exists():
        if output.mark_of(path) is not None:
            output.remove(path / output.MARK)  # of one that took its place in two steps
    elif old.exists():
        old.rename(path)
    output.remove(old)
    output.clear_stateless(str(path))
    if not force and output.is_done(partial, path):  # a forced run is to go on from there
        output.discard(partial)
    return completed
