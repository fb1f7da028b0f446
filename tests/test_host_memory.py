"""Memory advice for large tables: whole huge pages of a range are emptied and advised, and no byte outside it changes."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from recsys_ray.host_memory import HUGE_PAGE, zeros_on_huge_pages

pytestmark = pytest.mark.unit


def private_memory(size: int) -> np.ndarray:
    """Returns bytes in a mapping of their own that are all 1. NumPy gives its own large arrays advice on huge pages."""
    memory = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    memory[:] = 1
    return memory


def flags_of(address: int) -> list[str]:
    """Returns the kernel's flags of the mapping that holds an address: "hg" is MADV_HUGEPAGE."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(bound, 16) for bound in first.split("-"))
            inside = start <= address < stop
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.fixture
def huge_pages() -> None:
    """Skips a test where the kernel refuses what zeros_on_huge_pages asks for, which then leaves the pages as they are."""
    try:
        mmap.mmap(-1, HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError) as error:
        pytest.skip(f"this kernel has no transparent huge pages: {error}")


def test_whole_huge_pages_of_the_range_are_emptied_and_no_others(huge_pages: None) -> None:
    memory, start = private_memory(5 * HUGE_PAGE), 1000
    inner = memory[start:-start]
    address = inner.ctypes.data
    first = -address % HUGE_PAGE
    last = (address + inner.nbytes) // HUGE_PAGE * HUGE_PAGE - address
    assert last - first >= 3 * HUGE_PAGE
    zeros_on_huge_pages(address, inner.nbytes)
    assert not inner[first:last].any()
    assert memory[:start].all() and memory[-start:].all()
    assert inner[:first].all() and inner[last:].all()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this kernel does not show the flags of a mapping")
def test_the_next_writes_may_use_huge_pages(huge_pages: None) -> None:
    memory = private_memory(5 * HUGE_PAGE)
    address = memory.ctypes.data
    assert flags_of(address + HUGE_PAGE) and "hg" not in flags_of(address + HUGE_PAGE)
    zeros_on_huge_pages(address, 5 * HUGE_PAGE)
    assert "hg" in flags_of(address + HUGE_PAGE)


def test_less_than_a_huge_page_is_left_alone() -> None:
    memory = private_memory(HUGE_PAGE - mmap.PAGESIZE)
    zeros_on_huge_pages(memory.ctypes.data, memory.nbytes)
    assert memory.all()
