"""Calls into compiled libraries that run long, pass no safe point, and may panic."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread
from typing import TypeVar

from prunecli.interruption import safe_point

T = TypeVar("T")

WAIT = 0.2  # seconds between two looks for a signal
STDERR = 2

_left: list[Thread] = []


class Panicked(Exception):
    """A library written in Rust has given up, which its bindings raise as no Exception."""


def called(work: Callable[[], T], silent: bool = False) -> T:
    """Return what a compiled library makes.

    It runs in a thread beside the main one, which acts on signals meanwhile. Raises Panicked with
    the message of a panic, which writes more to stderr by itself; with `silent` nothing does.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)

    safe_point()
    thread = Thread(target=run, daemon=True)
    with _silent() if silent else nullcontext():
        thread.start()
        _left.append(thread)
        while thread.is_alive():
            thread.join(WAIT)
            safe_point()
        _left.remove(thread)
    for error in failed:
        if type(error).__name__ == "PanicException":
            raise Panicked(str(error)) from None
        raise error
    return made[0]


def is_left() -> bool:
    """Return whether a call still runs that a signal has abandoned."""
    return any(thread.is_alive() for thread in _left)


@contextmanager
def _silent() -> Iterator[None]:
    """Lead descriptor 2 nowhere."""
    stderr, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(stderr, STDERR)
        os.close(stderr)
