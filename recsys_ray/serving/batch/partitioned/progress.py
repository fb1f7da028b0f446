"""Progress lines of a batch job, from the files that its tasks have finished, whatever engine runs them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_lines(stage: str, rows: int, done: Callable[[], float]) -> Iterator[None]:
    """Prints how far the body is, now and then, and how long it took.

    Args:
        rows: the rows, or users, of the whole stage.
        done: returns the finished share of the stage, 0 to 1, some of which may have been there before.
    """
    before, began, stop = done(), time.perf_counter(), threading.Event()
    resumed = f", of which {before:.0%} are done" if before else ""
    print(f"{stage}: {rows:,} rows{resumed} ...", flush=True)

    def watch() -> None:
        while not stop.wait(SECONDS_BETWEEN_LINES):
            print(f"{stage}: {_status(done(), before, rows, time.perf_counter() - began)}", flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    elapsed = time.perf_counter() - began
    print(f"{stage}: took {elapsed:.1f} s, {(1 - before) * rows / elapsed:,.0f} rows/s", flush=True)


def _status(share: float, before: float, rows: int, seconds: float) -> str:
    if share <= before:
        return f"{share:.0%}"
    left = (1 - share) * seconds / (share - before)
    return f"{share:.0%}, {(share - before) * rows / seconds:,.0f} rows/s, about {left:,.0f} s left"
