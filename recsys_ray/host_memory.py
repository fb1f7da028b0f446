"""What glibc and Linux are told about this process's memory."""

from __future__ import annotations

import ctypes
import mmap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in malloc.h."""
MMAP_ABOVE, TRIM_ABOVE = 1 << 27, 1 << 29
"""Bytes: larger ones, such as embedding tables, have pages of their own, and no more than that stays in hand unused."""
HUGE_PAGE = 1 << 21


def keep_freed_memory() -> None:
    """What is freed is taken again, rather than fresh pages of the system, each of which it must clear first: a sixth of a
    training step on a CPU, a tenth of a preparation. Another C library goes on as it would."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_ABOVE)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_ABOVE)


def zeros_on_huge_pages(address: int, size: int) -> None:
    """Empties these bytes, which the next writes then find on pages of 2 MiB: of small pages, a large table looked up at random
    has more than a processor can keep the places of. Where the system has no such pages, they may stay as they are."""
    first, last = -(-address // HUGE_PAGE) * HUGE_PAGE, (address + size) // HUGE_PAGE * HUGE_PAGE
    if first >= last or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE) == 0:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
