"""Running the passes of preparation: one line each, and errors that a user can act upon."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from recsys_ray.config import PrepareConfig
from recsys_ray.data.blocks.parts import Written
from recsys_ray.data.prepare.profile import Profile
from recsys_ray.data.sources.source import Source
from recsys_ray.data.transform import NOT_BINARY

T = TypeVar("T")


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


def check_enough(profile: Profile, config: PrepareConfig) -> None:
    rejected = sum(profile.reasons.values())
    worst = "; ".join(f"{reason} ({count:,} rows)" for reason, count in list(profile.worst_reasons.items())[:5])
    hint = ' ("positive_above" makes a label of any number)' if NOT_BINARY in worst else ""
    remedy = f"{worst}. Correct the data or the schema{hint}"
    if profile.rows == rejected:
        raise ValueError(f"no rows to keep: all {profile.rows:,} rows of {config.parquet} are bad: {remedy}")
    if rejected > config.max_rejected * profile.rows:
        raise ValueError(
            f"{rejected:,} of {profile.rows:,} rows of {config.parquet} are bad, more than --max-rejected {config.max_rejected}: "
            f"{remedy}, or raise the limit to set them aside"
        )


def check_complete(profile: Profile, written: Written) -> None:
    kept, rows = profile.rows - sum(profile.reasons.values()), written.rows
    if (sum(rows.values()), written.hash_sum) != (kept, profile.hash_sum):
        raise ValueError(
            f"wrote {rows}, not the {kept:,} rows that were to be kept: the source changed during preparation. Run it again; a "
            "view that gives other rows each time (a limit, a random or a floating-point sum) must be a table first"
        )
    if not rows["train"]:
        raise ValueError(f"no training rows: the split left {rows}. Choose other fractions or another split")
