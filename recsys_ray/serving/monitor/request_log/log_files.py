"""The folder of a request log: files that appear whole, by any number of processes, within a number of bytes."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PREFIX, SUFFIX = "requests-", ".parquet"
PARTIAL = "."
"""What the name of a file begins with while it is written; readers take no such file."""
ABANDONED_SECONDS = 600
"""A partial file that is older belongs to a process that was killed."""


def log_files(folder: Path) -> list[Path]:
    """Returns the complete files of a log, oldest first: their names begin with the time at which they were written."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def add_log_file(folder: Path, rows: pa.Table, max_bytes: int) -> Path:
    """Adds a file to a log, whole or not at all, and deletes the oldest ones where all would exceed `max_bytes`.

    Raises ValueError where the file alone exceeds `max_bytes`, and OSError as the file system does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    path = folder / f"{PREFIX}{stamp}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
    partial = folder / (PARTIAL + path.name)
    try:
        with partial.open("wb") as stream:
            pq.write_table(rows, stream, compression="zstd")
            stream.flush()
            os.fsync(stream.fileno())
        if (size := partial.stat().st_size) > max_bytes:
            raise ValueError(f"max_bytes is {max_bytes:,}, which is too little for a file of {size:,} bytes")
        delete_oldest(folder, max_bytes)
        return partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def delete_oldest(folder: Path, max_bytes: int) -> None:
    """Deletes files of a log, oldest first, until all that is there, partial files included, fits in `max_bytes`.

    Another process may do the same at the same time. Partial files that a killed process left behind go first.
    """
    sizes = dict(_sizes(folder))
    total = sum(sizes.values())
    abandoned = [path for path in sizes if path.name.startswith(PARTIAL) and _age(path) > ABANDONED_SECONDS]
    for path in [*abandoned, *(path for path in sorted(sizes) if not path.name.startswith(PARTIAL))]:
        if path not in abandoned and total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= sizes[path]


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    for pattern in (f"{PREFIX}*{SUFFIX}", f"{PARTIAL}{PREFIX}*{SUFFIX}"):
        for path in folder.glob(pattern):
            try:
                yield path, path.stat().st_size
            except FileNotFoundError:  # another process has deleted or renamed it
                continue


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
