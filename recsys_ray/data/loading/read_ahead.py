"""Reads an iterable ahead of its consumer, in a thread: decoding and copying release Python's lock for most of their time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.05


class _End(NamedTuple):
    """The last element that the thread hands over: how reading ended."""

    error: BaseException | None


@contextmanager
def read_ahead(items: Generator[T], ahead: int) -> Iterator[Iterator[T]]:
    """Yields an iterator over `items` that reads up to `ahead` of them before they are asked for.

    An error of `items` is raised in the consumer, in its place. `items` is closed, and the thread has ended, when the block ends.
    """
    reader = _Reader(items, ahead)
    try:
        yield iter(reader)
    finally:
        reader.close()


class _Reader(Generic[T]):
    def __init__(self, items: Generator[T], ahead: int) -> None:
        self._items, self._read = items, Queue[T | _End](ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while not isinstance(item := self._read.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def close(self) -> None:
        """Stops reading and waits for the thread."""
        self._closed.set()
        while self._thread.is_alive():
            with suppress(Empty):  # makes room, which the thread may wait for
                self._read.get(timeout=POLL_SECONDS)
        self._thread.join()

    def _run(self) -> None:
        end = _End(None)
        try:
            with closing(self._items) as items:
                for item in items:
                    self._hand_over(item)
                    if self._closed.is_set():
                        return
        except BaseException as error:  # raised in the consumer
            end = _End(error)
        self._hand_over(end)

    def _hand_over(self, item: T | _End) -> None:
        """Waits for room. Once nothing is wanted any more, it drops the item."""
        waiting = True
        while waiting and not self._closed.is_set():
            with suppress(Full):
                self._read.put(item, timeout=POLL_SECONDS)
                waiting = False
