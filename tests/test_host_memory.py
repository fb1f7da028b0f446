"""Pages of the system: what is emptied for them is what was meant, and not a byte beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys_ray.host_memory import HUGE_PAGE, zeros_on_huge_pages


def test_only_whole_huge_pages_of_the_range_are_emptied() -> None:
    memory = np.ones(4 * HUGE_PAGE, np.uint8)
    start = 1000
    inner = memory[start:-start]
    address = inner.ctypes.data
    zeros_on_huge_pages(address, inner.nbytes)
    first = -address % HUGE_PAGE
    last = (address + inner.nbytes) // HUGE_PAGE * HUGE_PAGE - address
    assert memory[:start].all() and memory[-start:].all()
    assert inner[:first].all() and inner[last:].all()
    emptied = not inner[first:last].any()
    assert last - first >= 2 * HUGE_PAGE and (emptied or not Path("/sys/kernel/mm/transparent_hugepage").exists())


def test_less_than_a_huge_page_is_left_alone() -> None:
    memory = np.ones(HUGE_PAGE - 1, np.uint8)
    zeros_on_huge_pages(memory.ctypes.data, memory.nbytes)
    assert memory.all()
