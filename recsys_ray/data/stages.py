"""Running the passes of preparation: one line each, and errors that a user can act upon."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from recsys_ray.data.sources import Source

T = TypeVar("T")


class EngineFailed(RuntimeError):
    """The engine, not the input, is at fault: its cluster is gone, out of memory, or cannot be started."""


def run_stage(stage: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    print(f"prepare: {stage} ...", flush=True)
    result = work()
    print(f"prepare: {stage} took {time.perf_counter() - started:.1f} s", flush=True)
    return result


@contextmanager
def clear_errors(out: Path, source: Source) -> Iterator[None]:
    """Says of a full disk which one it is, and of damaged pages which file holds them: the engine's error names neither."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"the disk of {out} is full: free some space, or choose another --out") from error
        # pyarrow raises bare OSErrors for pages it cannot read; the system's have a subclass or a number.
        raise (type(error) is OSError and error.errno is None and _damaged(source)) or error from error
    except pa.ArrowException as error:
        raise _damaged(source) or error from error


def _damaged(source: Source) -> ValueError | None:
    found = next(filter(None, (table.unreadable() for table in source.tables)), "")
    return ValueError(f"{found}: write it again or leave it out") if found else None
