"""Settings of glibc and Linux for this process's memory."""

from __future__ import annotations

import ctypes
import mmap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in malloc.h."""
MMAP_ABOVE, TRIM_ABOVE = 1 << 27, 1 << 29
"""Bytes: larger allocations, such as embedding tables, get pages of their own; no more than this is kept after it was freed."""
HUGE_PAGE = 1 << 21


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system, which must clear every fresh page.

    Clearing takes a sixth of a training step on a CPU, and a tenth of a preparation. Does nothing under another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_ABOVE)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_ABOVE)


def zeros_on_huge_pages(address: int, size: int) -> None:
    """Discards these bytes, so that the next write to them gets pages of 2 MiB, filled with zeros.

    Random lookups in a large table on 4 KiB pages thrash the TLB. Where the system has no huge pages, the bytes may stay.
    """
    first, last = -(-address // HUGE_PAGE) * HUGE_PAGE, (address + size) // HUGE_PAGE * HUGE_PAGE
    if first >= last or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE) == 0:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
