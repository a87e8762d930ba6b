"""Stopping between two steps: what runs long saves its state when it is asked to stop.

A signal ends a command at once until the first of these steps is done.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from prunecli.cli.console import StderrReport


@contextmanager
def first_signal(report: StderrReport) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM came; the second one ends at once.

    Before somebody asks it for the first time they end the command at once, as ever: not all work
    is done in steps.
    """
    asked = False
    before: dict[int, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            sys.exit(128 + number)
        asked = True
        report.info("stopping after this step; press Ctrl-C again to stop now")

    def was_asked() -> bool:
        if not before:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask)
        return asked

    try:
        yield was_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
