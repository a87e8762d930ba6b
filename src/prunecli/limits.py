"""Bounds on what code does for the sake of a stranger's file: of memory, and of time."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from prunecli.errors import of_memory


class TookTooLong(Exception):
    """The block computed for longer than it may."""


@contextmanager
def memory(more: int) -> Iterator[None]:
    """Let the block take `more` bytes; beyond them its allocations fail.

    They are counted for the whole process, on Linux alone: other systems have no such limit. Where
    the process has a lower limit of its own, which says nothing of the file, raises OutOfMemory.
    """
    if sys.platform != "linux":
        yield
        return
    from resource import RLIM_INFINITY, RLIMIT_AS, getpagesize, getrlimit, setrlimit

    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * getpagesize()
    soft, hard = getrlimit(RLIMIT_AS)
    known = [limit for limit in (soft, hard) if limit != RLIM_INFINITY]
    setrlimit(RLIMIT_AS, (min([held + more, *known]), hard))
    try:
        yield
    except MemoryError as error:
        own = of_memory(error)
        if own is not None and any(limit < held + more for limit in known):
            raise own from None
        raise
    finally:
        setrlimit(RLIMIT_AS, (soft, hard))


@contextmanager
def seconds(most: float) -> Iterator[None]:
    """Raise TookTooLong in a block that computes for longer; in the main thread alone.

    Time that the process waits does not count, so that a busy machine makes no difference.
    """
    if current_thread() is not main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"it takes more than {most:g} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
