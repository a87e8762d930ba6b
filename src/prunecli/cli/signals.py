"""Stopping between two steps: what runs long saves its state when it is asked to stop."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from prunecli.cli.console import StderrReport


@contextmanager
def first_signal(report: StderrReport, wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM came; the second one ends at once.

    Where it is not `wanted`, they end the command at once as ever.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            sys.exit(128 + number)
        asked = True
        report.info("stopping after this step; press Ctrl-C again to stop now")

    numbers = (signal.SIGINT, signal.SIGTERM) if wanted else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
