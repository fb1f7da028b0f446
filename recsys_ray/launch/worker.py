"""What every engine starts on each worker: `train(config)`, and a record in the run directory of who ran it and how it ended.

From these records the launcher says, in the same words under every engine, which worker failed first, where, and why. An
engine's own account differs from one to the next: Ray knows no signals, Spark only log lines.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from unittest.mock import patch

from recsys_ray.command_line import JobError
from recsys_ray.config import TrainConfig
from recsys_ray.launch.stopping import end_worker, stoppable

RECORDS = ".workers"
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL",
    "Timed out waiting",
    "peer closed",
    "process group has not been initialized",  # Ray takes it from the workers that are left
)
PR_SET_PDEATHSIG = 1


class Train(Protocol):
    def __call__(self, config: TrainConfig, /) -> None: ...


class WorkerFailed(JobError):
    """A worker's own traceback on top, then one line: its rank, host, process, and the error or signal."""


@dataclass(frozen=True)
class Record:
    rank: int
    host: str
    pid: int
    began: float
    state: Literal["running", "finished", "failed", "terminated"] = "running"
    ended: float = 0.0
    error: str = ""
    trace: str = ""


def run_worker(train: Train, config: TrainConfig, attempt: str = "") -> None:
    """Called on every worker, with RANK set. Raises whatever `train` does, after recording it.

    `attempt`: the same on all workers that are started together, and on no others; empty: it is told by their meeting place.
    """
    records = _records(config.run_dir) / (attempt or _meeting_place())
    records.mkdir(parents=True, exist_ok=True)
    record = Record(int(os.environ["RANK"]), socket.gethostname(), os.getpid(), time.time())
    _write(records, record)
    # Of a crash in C++ nothing else would remain; SIGKILL alone leaves no trace here.
    with _crash_file(records, record.rank).open("w") as crash:
        faulthandler.enable(crash)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end_worker)
            _end_with_parent()
        try:
            train(config)
        except BaseException as error:
            state: Literal["failed", "terminated"] = "failed" if isinstance(error, Exception) else "terminated"
            words, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            _write(records, dataclasses.replace(record, state=state, ended=time.time(), error=words, trace=trace))
            raise
        finally:
            faulthandler.disable()
    _write(records, dataclasses.replace(record, state="finished", ended=time.time()))


@contextmanager
def attempts(config: TrainConfig) -> Iterator[None]:
    """Around an engine's run: no records of the runs before, and none left of one that succeeds."""
    clear_records(config.run_dir)
    with stoppable(config):
        yield
    clear_records(config.run_dir)


@contextmanager
def without_gpus(hide: bool) -> Iterator[None]:
    """Workers started meanwhile on this machine see no GPU, if so wanted: one that sees a GPU takes it."""
    with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""} if hide else {}):
        yield


def _meeting_place() -> str:
    """Every attempt has a port of its own; torch elastic's have the same, and are counted."""
    return "-".join(os.environ.get(name, "0") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))


def _end_with_parent() -> None:
    """A worker that waits in NCCL cannot unwind, and would keep its GPU's memory from the next attempt."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(records: Path, record: Record) -> None:
    partial = records / f".rank-{record.rank}"
    partial.write_text(json.dumps(dataclasses.asdict(record)))
    partial.replace(_record_file(records, record.rank))


def _records(run_dir: str) -> Path:
    return Path(run_dir) / RECORDS


def _record_file(records: Path, rank: int) -> Path:
    return records / f"rank-{rank}.json"


def _crash_file(records: Path, rank: int) -> Path:
    return records / f"rank-{rank}.crash"


def clear_records(run_dir: str) -> None:
    shutil.rmtree(_records(run_dir), ignore_errors=True)


def has_record(run_dir: str, attempt: str, rank: int) -> bool:
    """Whether a worker of this rank has been started in this attempt."""
    return _record_file(_records(run_dir) / attempt, rank).exists()


def failure(run_dir: str, died: Mapping[int, str] | None = None) -> WorkerFailed | None:
    """Why the last attempt failed, or None when no worker got as far as to leave a record.

    `died`: what the engine knows of workers that ended without an exception: rank -> its words; None: it knows nothing.
    A worker that was killed makes the others fail for want of their peer, so it comes before such errors.
    """
    records = _last_attempt(_records(run_dir))
    failed = sorted((record for record in records.values() if record.state == "failed"), key=lambda record: record.ended)
    lost = {file: record for file, record in records.items() if record.state == "running"}
    if died is not None:
        lost = {file: record for file, record in lost.items() if record.rank in died}
    own = [record for record in failed if not any(words in record.error for words in LOST_PEER)]
    if lost and not own:
        deaths = [_obituary(file, record, (died or {}).get(record.rank, "")) for file, record in lost.items()]
        return WorkerFailed("\n".join((["one of these:"] if died is None and len(deaths) > 1 else []) + deaths))
    if not failed:
        stopped = [record for record in records.values() if record.state == "terminated"]
        return WorkerFailed(f"{_name(stopped[0])} was ended by SIGTERM; run again to go on") if stopped else None
    first = (own or failed)[0]
    return WorkerFailed(f"{first.trace}\n{_name(first)} failed: {first.error}")


def _last_attempt(root: Path) -> dict[Path, Record]:
    """By file. Records of earlier attempts say nothing of why the last one failed."""
    records = {file: Record(**json.loads(file.read_text())) for file in sorted(root.glob("*/rank-*.json"))}
    last = max(records, key=lambda file: records[file].began, default=None)
    return {file: record for file, record in records.items() if last is not None and file.parent == last.parent}


def _name(record: Record) -> str:
    return f"worker rank {record.rank} on host {record.host} (process {record.pid})"


def _obituary(file: Path, record: Record, words: str) -> str:
    crash = _crash_file(file.parent, record.rank).read_text()
    if crash:
        return f"{crash}\n{_name(record)} crashed: {crash.splitlines()[0]}"
    cause = (
        "SIGKILL: the system ran out of memory (lower --train.global-batch or the tables, or add workers), its node was lost, "
        "or someone killed it"
    )
    return f"{_name(record)} was killed by {words or cause}"
