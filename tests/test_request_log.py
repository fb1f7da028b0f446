"""The request log: what it stores, what it never does to a server, its bound in bytes, killed and concurrent writers."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.serving.monitor import LoggedRequest, RequestLog
from recsys_ray.serving.monitor.request_log.log_files import ABANDONED_SECONDS, log_files
from tests.support.workers import IMPORTED_ONCE

SCHEMA = Schema(
    (
        Label("click"),
        Categorical("user_id", "user", key=True, num_embeddings=1000),
        Categorical("item_id", "item", "string", key=True, num_embeddings=1000),
        Categorical("recent", "user", "string", num_embeddings=1000, multi=True),
        Dense("age", "user"),
    )
)


def request(request_id: str, **changes: Any) -> LoggedRequest:
    features = pa.table({"user_id": [7], "recent": [["a", "b"]], "age": [31.0]})
    values = {"kind": "recommend", "features": features, "items": ["a", "b"], "ranking_scores": [0.5, 0.25]}
    return LoggedRequest(request_id=request_id, **(values | changes))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in log_files(folder) for row in pq.read_table(file).to_pylist()]


def bytes_of(folder: Path) -> int:
    """Returns the bytes of the files that readers see; one may be deleted meanwhile."""
    total = 0
    for file in log_files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


@pytest.mark.unit
def test_a_row_holds_the_request_and_its_answer(tmp_path: Path) -> None:
    large = 2**62 + 1
    frame = pa.Table.from_pandas(pd.DataFrame({"item_id": ["x", None], "user_id": [1.0, None], "other": [1, 2]}))
    with RequestLog(tmp_path, [SCHEMA]) as log:
        log.write(
            request(
                "first",
                user=large,
                retriever_version="r1",
                ranker_version="k1",
                time=12.5,
                milliseconds=3.0,
                retrieval_scores=np.array([2.0, np.nan], np.float32),
            )
        )
        log.write(request("second", kind="rank", features=frame, items=["x", None], ranking_scores=None))
        log.write(request("third", features=pa.table({"user_id": [large]}), items=[], ranking_scores=[]))
    first, second, third = rows_of(tmp_path)
    assert first.pop("time").timestamp() == 12.5 and second["time"].timestamp() == pytest.approx(time.time(), abs=60)
    assert first == {
        "request_id": "first",
        "kind": "recommend",
        "retriever_version": "r1",
        "ranker_version": "k1",
        "user": large,
        "features": [{"user_id": 7, "item_id": None, "recent": ["a", "b"], "age": 31.0}],
        "items": [
            {"key": "a", "retrieval_score": 2.0, "ranking_score": 0.5},
            {"key": "b", "retrieval_score": None, "ranking_score": 0.25},
        ],
        "milliseconds": 3.0,
    }
    assert second["features"] == [
        {"user_id": 1, "item_id": "x", "recent": None, "age": None},
        {"user_id": None, "item_id": None, "recent": None, "age": None},
    ]
    assert second["items"][1] == {"key": None, "retrieval_score": None, "ranking_score": None} and second["user"] is None
    assert third["features"][0]["user_id"] == large and third["items"] == []


@pytest.mark.unit
def test_a_sample_depends_on_the_request_id_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with RequestLog(tmp_path / name, [SCHEMA], sample=0.1) as log:
            for number in range(2000):
                log.write(request(str(number)))
        assert log.dropped == 0, "what the sample leaves out is not lost"
    one, other = (sorted(row["request_id"] for row in rows_of(tmp_path / name)) for name in ("one", "other"))
    assert one == other and 150 < len(one) < 250
    with pytest.raises(ValueError, match="sample is 10"):
        RequestLog(tmp_path, [SCHEMA], sample=10)


@pytest.mark.unit
def test_a_request_that_does_not_fit_is_dropped_alone(tmp_path: Path) -> None:
    bad = [
        request("scores", ranking_scores=[0.5]),
        request("type", features=pa.table({"user_id": ["x"]})),
        request("nested", features=pa.table({"age": [{"years": 3}]})),
        request("user", user="x"),
        request("\ud800"),
    ]
    with RequestLog(tmp_path, [SCHEMA]) as log:
        for number in range(100):
            log.write(request(str(number)))
            if number % 20 == 0:
                log.write(bad[number // 20])
    assert (log.written, log.dropped) == (100, 5)
    assert [row["request_id"] for row in rows_of(tmp_path)] == [str(number) for number in range(100)]


@pytest.mark.unit
def test_full_memory_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    log = RequestLog(tmp_path / "log", [SCHEMA], queue_bytes=50_000)
    for number in range(1000):
        log.write(request(str(number)))
    log.close()
    assert (log.written, log.dropped) == (0, 1000), "neither a full queue nor a folder that cannot be made raises"
    log.write(request("late"))
    assert log.dropped == 1001

    waiting = RequestLog(tmp_path / "other", [SCHEMA], queue_bytes=20_000, flush_seconds=3600)
    waiting._file_bytes = 1 << 40
    for number in range(100):
        waiting.write(request(str(number)))
    assert 0 < 100 - waiting.dropped < 20
    waiting.close()
    assert waiting.written + waiting.dropped == 100


@pytest.mark.unit
def test_all_files_together_stay_within_their_bytes(tmp_path: Path) -> None:
    bound, batch, batches, sizes = 60_000, 50, 40, []
    with RequestLog(tmp_path, [SCHEMA], max_bytes=bound, flush_seconds=0.01) as log:
        for last in range(batch, batch * batches + 1, batch):
            for number in range(last - batch, last):
                log.write(request(f"{number} {number * 0.7919 % 1}"))
            while log.written < last:
                sizes.append(bytes_of(tmp_path))
                time.sleep(0.001)
    ids = [int(row["request_id"].split()[0]) for row in rows_of(tmp_path)]
    assert bound / 2 < bytes_of(tmp_path) <= bound and max(sizes) <= bound
    assert ids == list(range(ids[0], batch * batches)) and ids[0] > 0, "the oldest are deleted"
    with RequestLog(tmp_path / "small", [SCHEMA], max_bytes=100) as small:
        small.write(request("does not fit"))
    assert (small.written, small.dropped, rows_of(tmp_path / "small")) == (0, 1, [])


def write_requests(folder: Path, name: str, count: int) -> None:
    """Logs requests one after the other, in many small files; a count of 0 means until it is killed."""
    log = RequestLog(folder, [SCHEMA], flush_seconds=0.02)
    for number in range(count) if count else itertools.count():
        log.write(request(f"{name} {number}"))
        time.sleep(0.0005)
    log.close()
    assert (log.written, log.dropped) == (count, 0)


def writer(folder: Path, name: str, count: int) -> ForkServerProcess:
    """Starts a process that logs, from the server that other tests fork their workers from."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    process = context.Process(target=write_requests, args=(folder, name, count))
    process.start()
    return process


def test_a_killed_writer_leaves_no_broken_file(tmp_path: Path) -> None:
    for attempt in range(4):
        process, before = writer(tmp_path, str(attempt), 0), len(log_files(tmp_path))
        while len(log_files(tmp_path)) < before + 3:
            assert process.is_alive()
            time.sleep(0.001 * attempt)
        process.kill()
        process.join()
        ids = [row["request_id"] for row in rows_of(tmp_path) if row["request_id"].startswith(f"{attempt} ")]
        assert ids and ids == [f"{attempt} {number}" for number in range(len(ids))]

    files = log_files(tmp_path)
    left = tmp_path / f".{files[0].name}"
    left.write_bytes(files[0].read_bytes()[:-20])
    assert log_files(tmp_path) == files
    os.utime(left, (0, time.time() - 2 * ABANDONED_SECONDS))
    with RequestLog(tmp_path, [SCHEMA]) as log:
        log.write(request("next"))
    assert not left.exists() and log_files(tmp_path)[: len(files)] == files


def test_several_processes_write_into_one_folder(tmp_path: Path) -> None:
    processes = [writer(tmp_path, name, 200) for name in "abc"]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    found = Counter(row["request_id"] for row in rows_of(tmp_path))
    assert found == Counter(f"{name} {number}" for name in "abc" for number in range(200))
    assert len(log_files(tmp_path)) > 3
