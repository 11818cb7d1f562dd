"""The C library's memory allocator, which PyTorch uses on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BLOCK = 32 * 2**20  # as much as every glibc of 64 bits accepts


def keep_freed_memory() -> bool:
    """Lets this process keep blocks of up to 32 MB that it frees, instead of giving them back to the system.

    A training step on the CPU allocates the same tensors again and again. As glibc comes, it may map each of them anew,
    and the system clears its pages; how often depends on what else is allocated (docs/speed.md). The process's memory
    does not shrink any more; larger blocks, such as data sets, are still given back. ``train.py`` calls this; a script
    of your own may. Nothing happens where the C library is not glibc, or where the environment already sets
    ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``.

    Returns:
        Whether it was done.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if platform.libc_ver()[0] != "glibc" or chosen:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
