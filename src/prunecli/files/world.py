"""The processes that `torchrun` started, by its environment variables: without loading torch."""

import os


def size() -> int:
    """Return how many processes there are; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_job() -> bool:
    """Return whether there are others, or may be."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Return whether this process reports and writes for all."""
    return os.environ.get("RANK", "0") == "0"
