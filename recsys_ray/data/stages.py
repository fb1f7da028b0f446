"""Running the passes of preparation: one line each, no noise from Ray Data, and errors that a user can act upon."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import RayError, RayTaskError

from recsys_ray.data.parquet_files import name_unreadable
from recsys_ray.data.sources import Source


def run_stage(stage: str, work: Callable[[], Any]) -> Any:
    """Runs a Ray Data pipeline; an error raised in one of its tasks comes back as itself.

    Ray Data draws its bars on a terminal; in a log file its lines every few seconds would drown ours, one a stage. Nor may it
    log a traceback of every failure: it is raised anyway. Its newer reader (v2, the default in Ray 2.60) starts actors for every
    read, 3 seconds of a core each, and puts small files into one block, so that one writer writes all: 2,000 rows took 22 s
    rather than 3, a million 13 s rather than 4.
    """
    context = ray.data.DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = sys.stderr.isatty()
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    started = time.perf_counter()
    print(f"prepare: {stage} ...", flush=True)
    try:
        result = work()
    except RayTaskError as error:
        raise _root_cause(error) from error
    finally:
        logger.setLevel(level)
    print(f"prepare: {stage} took {time.perf_counter() - started:.1f} s", flush=True)
    return result


def _root_cause(error: BaseException) -> BaseException:
    while isinstance(error, RayError):
        cause = getattr(error, "cause", None) or error.__cause__
        if cause is None:
            break
        error = cause
    return error


@contextmanager
def clear_errors(out: Path, source: Source) -> Iterator[None]:
    """Says of a full disk which one it is, and of damaged pages which file holds them: Ray Data's error names neither."""
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
    found = next(filter(None, (name_unreadable(files) for files in source.files)), "")
    return ValueError(f"{found}: write it again or leave it out") if found else None
