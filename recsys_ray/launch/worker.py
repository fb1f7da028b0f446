"""What every engine starts on each worker: `train(config)`, and a record in the run directory of who ran it and how it ended.

From these records the launcher says, in the same words under every engine, which worker failed first, where, and why. An
engine's own account differs from one to the next: Ray knows no signals, Spark only log lines.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from recsys_ray.config import TrainConfig

RECORDS = ".workers"
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting", "peer closed")


class WorkerFailed(RuntimeError):
    """A worker's own traceback on top, then one line: its rank, host, process, and the error or signal."""


@dataclass(frozen=True)
class Record:
    rank: int
    host: str
    pid: int
    state: Literal["running", "finished", "failed", "terminated"] = "running"
    ended: float = 0.0
    error: str = ""
    trace: str = ""


def run_worker(train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
    """Called on every worker, with RANK set. Raises whatever `train` does, after recording it."""
    records = _records(config.run_dir)
    records.mkdir(parents=True, exist_ok=True)
    record = Record(int(os.environ["RANK"]), socket.gethostname(), os.getpid())
    _write(records, record)
    # Of a crash in C++ nothing else would remain; SIGKILL alone leaves no trace here.
    with _crash_file(records, record.rank).open("w") as crash:
        faulthandler.enable(crash)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _unwind)
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


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


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


def has_record(run_dir: str, rank: int) -> bool:
    """Whether a worker of this rank has been started since the records were cleared."""
    return _record_file(_records(run_dir), rank).exists()


def failure(run_dir: str, died: Mapping[int, str] | None = None) -> WorkerFailed | None:
    """Why the run failed, or None when no worker got as far as to leave a record.

    `died`: what the engine knows of workers that ended without an exception: rank -> its words; None: it knows nothing.
    A worker that was killed makes the others fail for want of their peer, so it comes before such errors.
    """
    files = sorted(_records(run_dir).glob("rank-*.json"))
    records = [Record(**json.loads(file.read_text())) for file in files]
    failed = sorted((record for record in records if record.state == "failed"), key=lambda record: record.ended)
    lost = [record for record in records if record.state == "running" and (died is None or record.rank in died)]
    own = [record for record in failed if not any(words in record.error for words in LOST_PEER)]
    if lost and not own:
        return WorkerFailed(_obituary(run_dir, lost[0], (died or {}).get(lost[0].rank, "")))
    if not failed:
        return None
    first = (own or failed)[0]
    return WorkerFailed(f"{first.trace}\n{_name(first)} failed: {first.error}")


def _name(record: Record) -> str:
    return f"worker rank {record.rank} on host {record.host} (process {record.pid})"


def _obituary(run_dir: str, record: Record, words: str) -> str:
    crash = _crash_file(_records(run_dir), record.rank).read_text()
    if crash:
        return f"{crash}\n{_name(record)} crashed: {crash.splitlines()[0]}"
    cause = (
        "SIGKILL: the system ran out of memory (lower --train.global-batch or the tables, or add workers), or someone killed it"
    )
    return f"{_name(record)} was killed by {words or cause}"
