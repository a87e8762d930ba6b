"""Ctrl-C, SIGTERM and SIGHUP: the first is noted, and acted on at a safe point; the second at once.

Where nothing can be lost, as in waiting for stdin, the first is acted on at once too.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from prunecli import interruption

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME = 0.5  # seconds in which another is the same: launchers pass on what a terminal sent to all
NOTE = b"prunecli: stopping as soon as nothing is lost by it; press Ctrl-C again to stop now\n"

_waiting = False
_first = 0.0


def listen() -> None:
    """Note signals from now on; those that whoever started us ignores (nohup, `&`) stay ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _first
    again = interruption.asked()
    if again and monotonic() - _first < SAME:
        return
    if not again:
        _first = monotonic()
        interruption.note(number)
    if again or _waiting:
        raise interruption.Interrupted
    if os.isatty(2):
        # not by print, which may be what was interrupted
        os.write(2, NOTE)


def leave() -> None:
    """Let signals end the process as the system does, now that nothing is under way."""
    for number in SIGNALS:
        if signal.getsignal(number) == _note:
            signal.signal(number, signal.SIG_DFL)
    interruption.note(None)


@contextmanager
def waiting() -> Iterator[None]:
    """Act on a signal at once: the block waits for somebody, and nothing is lost by leaving it."""
    global _waiting
    interruption.safe_point()
    _waiting = True
    try:
        yield
    finally:
        _waiting = False
