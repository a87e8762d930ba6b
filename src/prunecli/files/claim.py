"""Who may write OUT: one process at a time, which first clears up after those that died.

The lock is `flock` on a hidden file beside OUT, held from before the first look at OUT until the
verb ends. It is the kernel's, so it ends with its process however that dies; the file itself says
nothing. It is removed under the lock, and whoever opened it before that sees that the name has gone
from it and opens it anew: so nothing is left in a user's folder, and no two processes lock two
files of one name.

What a dead run left beside OUT bears OUT's name, a process number and a suffix:

    .OUT.PID.tmp           being written, or on the way out: cleared
    .OUT.PID.new/          finished, on its way to OUT and OUT's sidecar: moved there
    .OUT.PID.old           the old OUT, while a new one takes its place: put back if OUT is missing
    .OUT.partial.PID.tmp   the state of an unfinished run, on the way out: cleared

While that process lives nothing is touched, nor is what has another name.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prunecli.errors import OutputExists
from prunecli.files import output, world
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

    Raises OutputExists if another process holds one.
    """
    with ExitStack() as stack:
        completed = False
        if world.is_first() and not run.output.dry_run:
            # in one order: two runs that want the same two never wait, one gets both
            for out in sorted({out for out in outs if out and out.strip() and "\0" not in out}):
                path = Path(out).resolve()
                if stack.enter_context(_locked(path, out)):
                    completed |= _repaired(path)
        yield completed


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
        if os.fstat(handle).st_size == 0:  # a file that holds something is not ours
            lock.unlink(missing_ok=True)
        os.close(handle)
        for folder in made:
            with suppress(OSError):  # something is in it, as it should be
                folder.rmdir()


def _acquire(lock: Path, out: str) -> int:
    """Return the handle of a lock file that is locked and still has its name."""
    for _ in range(TRIES):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # another process removed the folder that it had made
        try:
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


def _repaired(path: Path) -> bool:
    """Complete or clear what dead runs left of a path that is locked; return whether it was made.

    A process number may have been this one's before: while the path is locked, nothing is ours.
    """
    completed = False
    leftover = re.compile(rf"\.{re.escape(path.name)}(?:\.partial)?\.(\d+)\.(tmp|new|old)")
    for left in sorted(path.parent.iterdir()):
        match = leftover.fullmatch(left.name)
        if match is None or left.is_symlink() or _lives(int(match[1])):
            continue
        if match[2] == "new" and left.is_dir():
            output.move_in(left, path)
            completed = True
        elif match[2] == "old" and not path.exists():
            left.rename(path)
        else:
            output.remove(left)
    partial = output.partial_of(str(path))
    if output.is_unmarked(partial):
        output.remove(partial)
    return completed


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's; or no process number at all, so that it was not left by a run
    return True
