"""Keeping a long stream's memory at what is alive."""

import ctypes
import sys


def release() -> None:
    """Give freed memory back to the system.

    glibc keeps freed tensors in its heap, where the holes add up, layer after layer, to several
    times what is alive.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
