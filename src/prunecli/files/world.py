"""The processes that `torchrun` started, by its environment variables: without loading torch."""

import os

from prunecli.errors import UsageError


def size() -> int:
    """Return how many processes there are; 1 without `torchrun`.

    Raises UsageError where the variable holds no number of processes.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"WORLD_SIZE is '{text}': expected a number of processes", "unset it")
    return int(text)


def is_job() -> bool:
    """Return whether there are others, or may be."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Return whether this process reports and writes for all."""
    return os.environ.get("RANK", "0") == "0"
