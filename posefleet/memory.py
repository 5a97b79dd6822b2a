"""Memory settings of posefleet's own processes: jobs, workers, replicas. Importing posefleet changes none of them.

glibc returns every large tensor to the kernel when it is freed, and the next step causes page faults to get the memory
back. The cost of this in a training step depends on the kernel and the size of the images;
``tests/bench/bench_step.py`` measures it. Training workers and batch loaders switch this off.

Python's cyclic garbage collector starts after 700 new objects (2000 since 3.12). Importing torch creates a million
objects that stay, and the collector scans them again and again: 0.5 s of the 8 s of an import, and so of every
``--help``.
"""

import ctypes
import gc
import sys

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Keep freed memory in this process: no mmap for large blocks, no trimming, one arena.

    Returns:
        Whether the C library accepted the settings; only glibc does, with others nothing changes.
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

    Jobs call it before they import torch, workers and replicas when they start.
    """
    gc.set_threshold(50_000, 20, 20)
