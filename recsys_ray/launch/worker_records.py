"""Keeps records in the run directory of who ran each worker and how it ended, and explains a failure by them.

From these records the launcher reports, in the same form under every engine, which worker failed first, where, and why.
The engines' own reports differ: Ray knows no signals, Spark only log lines.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from recsys_ray.command_line import JobError

RECORDS_FOLDER = ".workers"
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL",
    "Timed out waiting",
    "peer closed",
    "process group has not been initialized",  # Ray takes it from the workers that are left
)
"""Parts of the errors that a worker gets because another one has gone."""


class WorkerFailed(JobError):
    """The failure of a worker: its own traceback on top, then one line with its rank, host, process, and the error or signal."""


@dataclass(frozen=True)
class WorkerRecord:
    """Who runs a worker and how it has ended. Times are seconds since the epoch."""

    rank: int
    host: str
    pid: int
    began: float
    state: Literal["running", "finished", "failed", "terminated"] = "running"
    ended: float = 0.0
    error: str = ""
    trace: str = ""

    @classmethod
    def of_this_process(cls, rank: int) -> Self:
        """Returns the record of a worker that begins now."""
        return cls(rank, socket.gethostname(), os.getpid(), time.time())

    def finished(self) -> WorkerRecord:
        """Returns the record of this worker once it has ended well."""
        return dataclasses.replace(self, state="finished", ended=time.time())

    def ended_by(self, error: BaseException) -> WorkerRecord:
        """Returns the record of this worker once `error`, which is being handled, has ended it."""
        state: Literal["failed", "terminated"] = "failed" if isinstance(error, Exception) else "terminated"
        text = f"{type(error).__name__}: {error}"
        return dataclasses.replace(self, state=state, ended=time.time(), error=text, trace=traceback.format_exc())

    def write(self, folder: Path) -> None:
        """Puts this record in the place of an earlier one of the same rank, in one step."""
        partial = folder / f".rank-{self.rank}"
        partial.write_text(json.dumps(dataclasses.asdict(self), allow_nan=False))
        partial.replace(_record_file(folder, self.rank))

    def __str__(self) -> str:
        return f"worker rank {self.rank} on host {self.host} (process {self.pid})"


def attempt_folder(run_dir: str, attempt: str) -> Path:
    """Returns the folder with the records of all workers that are started together."""
    return Path(run_dir, RECORDS_FOLDER, attempt)


def crash_file(folder: Path, rank: int) -> Path:
    """Returns the file that holds the stack of a crash in C++, which leaves no other trace. SIGKILL leaves none at all."""
    return folder / f"rank-{rank}.crash"


def clear_records(run_dir: str) -> None:
    """Removes all records."""
    shutil.rmtree(Path(run_dir, RECORDS_FOLDER), ignore_errors=True)


def has_record(run_dir: str, attempt: str, rank: int) -> bool:
    """Returns whether a worker of this rank has been started in this attempt."""
    return _record_file(attempt_folder(run_dir, attempt), rank).exists()


def explain_failure(run_dir: str, killed: Mapping[int, str] | None = None) -> WorkerFailed | None:
    """Returns why the last attempt failed, or None if no worker got as far as to leave a record.

    A worker that was killed makes the others fail because their peer is lost, so it comes before such errors.

    Args:
        killed: rank -> cause, of the workers that ended without an exception, as the engine knows them; a cause may be "". None
            if the engine knows nothing of them.
    """
    records = _last_attempt(Path(run_dir, RECORDS_FOLDER))
    failed = sorted((record for record in records.values() if record.state == "failed"), key=lambda record: record.ended)
    lost = {file: record for file, record in records.items() if record.state == "running"}
    if killed is not None:
        lost = {file: record for file, record in lost.items() if record.rank in killed}
    own_errors = [record for record in failed if not any(part in record.error for part in LOST_PEER)]
    if lost and not own_errors:
        lines = [_describe_killed(file, record, (killed or {}).get(record.rank, "")) for file, record in lost.items()]
        return WorkerFailed("\n".join((["one of these:"] if killed is None and len(lines) > 1 else []) + lines))
    if not failed:
        stopped = [record for record in records.values() if record.state == "terminated"]
        return WorkerFailed(f"{stopped[0]} was ended by SIGTERM; run again to resume") if stopped else None
    first = (own_errors or failed)[0]
    return WorkerFailed(f"{first.trace}\n{first} failed: {first.error}")


def _last_attempt(root: Path) -> dict[Path, WorkerRecord]:
    """The records of the last attempt by their files: those of earlier ones do not say why it failed."""
    records = {file: WorkerRecord(**json.loads(file.read_text())) for file in sorted(root.glob("*/rank-*.json"))}
    last = max(records, key=lambda file: records[file].began, default=None)
    return {file: record for file, record in records.items() if last is not None and file.parent == last.parent}


def _describe_killed(file: Path, record: WorkerRecord, cause: str) -> str:
    crash = crash_file(file.parent, record.rank).read_text()
    if crash:
        return f"{crash}\n{record} crashed: {crash.splitlines()[0]}"
    unknown = (
        "SIGKILL: the system ran out of memory (add workers, or make the tables or --train.global-batch smaller), its node was "
        "lost, or someone killed it"
    )
    return f"{record} was killed by {cause or unknown}"


def _record_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"
