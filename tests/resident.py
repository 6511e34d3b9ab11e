"""The memory of a worker: what tests no longer use goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

GROWTH = 100 << 20  # bytes, from which on it is worth half a second to look


def resident() -> int:
    """Bytes that this process holds; 0 where the system has no such file."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Held:
    """What the process holds once nothing can be given back."""

    def __init__(self) -> None:
        self.bytes = resident()

    def give_back(self) -> None:
        """Free what only circles of references hold, and what the C library keeps, if a test left much."""
        if resident() > self.bytes + GROWTH:
            gc.collect()
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):  # glibc's
                libc.malloc_trim(0)
            self.bytes = resident()
