"""The request log read back, file by file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_ray.serving.monitor.request_log.log_files import log_files

log = logging.getLogger(__name__)
FILES_BETWEEN_LINES = 100
"""A line of progress is logged after so many files."""


def read_log(folder: Path, since: float, until: float) -> Iterator[pa.Table]:
    """Yields the requests that were answered from `since` to before `until`, seconds since 1970, file by file, oldest first.

    A file that a writer deletes meanwhile is left out. Raises FileNotFoundError where there is no log.
    """
    files = log_files(folder)
    if not files:
        raise FileNotFoundError(f"--log {folder} has no request log (requests-*.parquet): jobs/serve.py writes one")
    between = (pc.field("time") >= _moment(since)) & (pc.field("time") < _moment(until))
    for number, file in enumerate(files, 1):
        try:
            rows = pq.read_table(file, filters=between)
        except FileNotFoundError:
            continue
        if rows.num_rows:
            yield rows
        if number % FILES_BETWEEN_LINES == 0:
            log.info("read %d of %d files", number, len(files))


def _moment(seconds: float) -> pa.Scalar:
    limit = 2**62 / 1e6
    return pa.scalar(int(max(-limit, min(limit, seconds)) * 1e6), pa.timestamp("us", "UTC"))
