"""Reading ahead in a thread: the order of the items, errors, and an end before the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from recsys_ray.data.loading.read_ahead import read_ahead

pytestmark = pytest.mark.unit


class Source:
    """Numbers from 0 on; it notes how many were read, and whether it was closed."""

    def __init__(self, numbers: int, fails: bool = False) -> None:
        self.read, self.closed, self._numbers, self._fails = 0, False, numbers, fails

    def items(self) -> Generator[int]:
        try:
            for number in range(self._numbers):
                self.read += 1
                yield number
            if self._fails:
                raise OSError("the disk is gone")
        finally:
            self.closed = True


@contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_items_come_in_order_and_are_read_before_they_are_asked_for() -> None:
    source = Source(100)
    with no_thread_is_left(), read_ahead(source.items(), 2) as items:
        deadline = time.monotonic() + 10
        while source.read < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert source.read == 3, "two are kept, and one waits for room"
        assert list(items) == list(range(100))
    assert source.closed


def test_an_error_is_raised_in_its_place() -> None:
    source, found = Source(5, fails=True), []
    with no_thread_is_left(), pytest.raises(OSError, match="the disk is gone"), read_ahead(source.items(), 2) as items:
        found.extend(iter(items.__next__, 4))
        next(items)
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("used", [0, 1, 7])
def test_nothing_is_read_any_more_when_the_block_ends(used: int) -> None:
    source = Source(10**9)
    with no_thread_is_left(), read_ahead(source.items(), 2) as items:
        assert [next(items) for _ in range(used)] == list(range(used))
    read = source.read
    time.sleep(0.05)
    assert source.closed and source.read == read <= used + 4
