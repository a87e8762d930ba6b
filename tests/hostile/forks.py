"""Children that are this process, as it is: they begin in a moment, and see what it was told to do.

A child has one thread, and OpenMP's other ones are waited for by it for ever: so whoever forks
computes with one (`one_thread` in conftest.py).
"""

import os
from collections.abc import Callable


def begun(work: Callable[[], object]) -> int:
    """Begin a process that does `work` and nothing else; return its number.

    It ends with status 0, with 1 if `work` raised, or as `work` itself ended it.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """Wait for a child; return its exit status, or -N if it was ended by signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Return the exit status of a process that does `work`."""
    return ended(begun(work))
