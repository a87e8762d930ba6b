"""What `torchrun` tells every process by its environment; known before torch is loaded."""

import os


def size() -> int:
    """Return how many processes there are; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process is the one that speaks for all."""
    return os.environ.get("RANK", "0") == "0"
