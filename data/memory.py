"""The C library's allocator, told to keep what it gets.

glibc hands every large tensor back to the kernel when it is freed and page-faults it in again at the next step. How
much of a training step that costs depends on the kernel and the size of the images; ``tests/bench/bench_step.py``
measures it. Training workers and the loaders of batches ask the library not to.
"""

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process: no mmap for large blocks, no trimming, one arena.

    Returns:
        Whether the C library understood; only glibc does, elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 256 << 20}
    return all([mallopt(key, value) for key, value in settings.items()])
