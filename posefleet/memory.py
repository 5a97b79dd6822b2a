"""Memory settings of the processes that posefleet owns: jobs, workers, replicas. Importing posefleet sets none.

glibc hands every large tensor back to the kernel when it is freed and page-faults it in again at the next step. How
much of a training step that costs depends on the kernel and the size of the images; ``tests/bench/bench_step.py``
measures it. Training workers and the loaders of batches ask the library not to.

Python's cyclic garbage collector starts after 700 new objects (2000 since 3.12). Importing torch makes a million that
stay, and the collector walks through them over and over: 0.5 of 8 s of an import, and so of every ``--help``.
"""

import ctypes
import gc
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


def collect_garbage_rarely() -> None:
    """Let Python's cyclic garbage collector start after 50,000 new objects in this process.

    Jobs call it before they import torch, workers and replicas where they start.
    """
    gc.set_threshold(50_000, 20, 20)
