"""The log of a server's requests and answers: writing costs a request microseconds, and neither delays nor fails it.

    with RequestLog("logs/requests", [retriever.schema, ranker.schema]) as log:
        log.write(LoggedRequest(kind="recommend", request_id=..., features=user_rows, items=keys, ranking_scores=scores))

Requests wait in memory until a thread writes them as one Parquet file, once a minute or when they are many. Each process of a
server has a log of its own; all may write to one folder. What a killed process had in memory is lost, and no more.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from recsys_ray.schema import Schema
from recsys_ray.serving.monitor.request_log.log_files import add_log_file
from recsys_ray.serving.monitor.request_log.logged_request import LogFormat, LoggedRequest

log = logging.getLogger(__name__)
FILE_BYTES = 16 << 20
"""Memory of the requests that are written as one file, unless a minute passes first."""
CLOSE_SECONDS = 10.0


class RequestLog:
    """A log that one process writes. All methods may be called from any thread, and none of them raises."""

    def __init__(
        self,
        folder: str | Path,
        schemas: Sequence[Schema],
        *,
        sample: float = 1.0,
        max_bytes: int = 1 << 30,
        flush_seconds: float = 60.0,
        queue_bytes: int = 64 << 20,
    ) -> None:
        """Starts the thread that writes.

        Args:
            folder: where the files go; it is made when the first is written. All writers of a folder want the same `max_bytes`.
            schemas: of the models that are served. Their features are the columns that are logged.
            sample: the share of requests that is logged, chosen by a hash of the request id.
            max_bytes: of all files in the folder together; the oldest are deleted.
            flush_seconds: how long a request waits in memory at most, and so what a kill can lose.
            queue_bytes: memory of waiting requests, beyond which requests are dropped and counted.

        Raises ValueError for a `sample` that is no share.
        """
        if not 0 <= sample <= 1:
            raise ValueError(f"sample is {sample}: wants a share of the requests, 0 to 1")
        self._folder, self._format, self._sample = Path(folder), LogFormat.of(schemas), sample
        self._max_bytes, self._flush_seconds, self._queue_bytes = max_bytes, flush_seconds, queue_bytes
        self._file_bytes = max(1, min(FILE_BYTES, queue_bytes // 2, max_bytes // 8))
        self._waiting: list[LoggedRequest] = []
        self._waiting_bytes, self._written, self._dropped, self._closing = 0, 0, 0, False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def written(self) -> int:
        """The number of requests that are in files."""
        return self._written

    @property
    def dropped(self) -> int:
        """The number of requests lost: memory was full, a file could not be written, or a value did not fit its column."""
        return self._dropped

    def wants(self, request_id: str) -> bool:
        """Returns whether the sample has a request, so that a server need not describe one that it leaves out."""
        return self._sample >= 1 or _share(request_id) < self._sample

    def write(self, request: LoggedRequest) -> None:
        """Adds a request, unless the sample leaves it out. Returns at once."""
        if not self.wants(request.request_id):
            return
        size = request.nbytes
        with self._change:
            if self._closing or self._waiting_bytes + size > self._queue_bytes:
                self._dropped += 1
                return
            self._waiting.append(request)
            self._waiting_bytes += size
            if self._waiting_bytes >= self._file_bytes:
                self._change.notify()

    def close(self) -> None:
        """Writes what waits and stops the thread; gives up after CLOSE_SECONDS. Later requests are dropped."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(CLOSE_SECONDS)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._change:
                self._change.wait_for(lambda: self._closing or self._waiting_bytes >= self._file_bytes, self._flush_seconds)
                closing, requests = self._closing, self._waiting
                self._waiting, self._waiting_bytes = [], 0
            if requests:
                written = self._flush(requests)
                with self._change:
                    self._written += written
                    self._dropped += len(requests) - written

    def _flush(self, requests: list[LoggedRequest]) -> int:
        """Writes a file and returns how many of the requests are in it."""
        try:
            rows = self._rows(requests)
            if rows.num_rows:
                add_log_file(self._folder, rows, self._max_bytes)
            return rows.num_rows
        except Exception as error:  # a server must not lose its log to one bad minute, whatever was wrong in it
            log.warning("%d requests could not be logged in %s: %s", len(requests), self._folder, error)
            return 0

    def _rows(self, requests: list[LoggedRequest]) -> pa.Table:
        """Returns the rows of the requests that fit the format of the log."""
        try:
            return self._format.to_table(requests)
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            if len(requests) == 1:
                log.warning("a request cannot be logged: %s", error)
                return self._format.arrow_schema.empty_table()
        half = len(requests) // 2
        return pa.concat_tables([self._rows(requests[:half]), self._rows(requests[half:])])


def _share(request_id: str) -> float:
    """Returns a number from 0 to 1 that looks random and depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(errors="replace"), digest_size=8).digest()) / 2.0**64
