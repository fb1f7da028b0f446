"""glibc's allocator, told to keep what is freed: preparation and training take and free the same large arrays over and over."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in malloc.h."""
MMAP_ABOVE, TRIM_ABOVE = 1 << 27, 1 << 29
"""Bytes: larger ones, such as embedding tables, have pages of their own, and no more than that stays in hand unused."""


def keep_freed_memory() -> None:
    """What is freed is taken again, rather than fresh pages of the system, each of which it must clear first: a sixth of a
    training step on a CPU, a tenth of a preparation. Another C library goes on as it would."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_ABOVE)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_ABOVE)
