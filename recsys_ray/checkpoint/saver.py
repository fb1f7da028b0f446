"""Checkpoints in the background: training waits for a copy in memory, and a thread writes that while it goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from recsys_ray.checkpoint.staging import Staging
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.checkpoint.writer import ChecksumWriter

log = logging.getLogger(__name__)


class Saver:
    """Every worker has one, and makes the same calls in the same order. Close it before the process group goes.

    What cannot be written ends no run: it is told, removed, and the checkpoints before it stay. Once one is committed, all are
    removed but the newest `keep_last`, and the first `keep_best` of those that `ranked` names and that are there.
    """

    def __init__(self, store: CheckpointStore, keep_last: int, keep_best: int = 0) -> None:
        self._store, self._keep_last, self._keep_best = store, keep_last, keep_best
        # Of its own, and on the CPU: collectives of two threads in one group would meet the wrong ones.
        self._group = dist.new_group(backend="gloo")
        self._staging = Staging(self._group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_on_device, initargs=_own_device())
        self._pending: list[Future[Any]] = []

    def reserve(self, state: dict[str, Any]) -> None:
        """Takes the memory for copies of `state` in the background, so that the first checkpoint need not wait for it."""
        self._pending.append(self._thread.submit(self._staging.reserve, state))

    def save(self, step: int, state: dict[str, Any], note: dict[str, Any], ranked: Sequence[int] = ()) -> None:
        """Returns when `state`, which may hold sharded tensors, has been copied. `note` is JSON, for `newest_sound` to return."""
        self.wait()  # for the buffers
        self._pending.append(self._thread.submit(self._write, step, self._staging.copy(state), note, ranked))

    def amend(self, step: int, note: dict[str, Any], ranked: Sequence[int] = ()) -> None:
        """Another note for a checkpoint that was saved before, where that succeeded."""
        self._pending.append(self._thread.submit(self._amend, step, note, ranked))

    def wait(self) -> None:
        """Until all is written, or has failed."""
        for pending in self._pending:
            pending.result()
        self._pending.clear()

    def close(self) -> None:
        """What is being written is finished, unless a worker has gone."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write(self, step: int, state: dict[str, Any], note: dict[str, Any], ranked: Sequence[int]) -> None:
        rank = dist.get_rank()
        try:
            if rank == 0:
                self._remove(step)  # of an earlier attempt, unfinished or damaged
            dist.barrier(self._group)
            writer = ChecksumWriter(self._store, step)
            dcp.save(state, storage_writer=writer, process_group=self._group)
            if rank == 0:
                self._commit(step, {"files": writer.files, "note": note}, ranked)
        except (CheckpointException, Exception) as error:  # the library's is no Exception
            if rank == 0:
                self._give_up(step, error)

    def _amend(self, step: int, note: dict[str, Any], ranked: Sequence[int]) -> None:
        if dist.get_rank() != 0:
            return
        try:
            if step in self._store.committed():
                self._commit(step, {**self._store.marker(step), "note": note}, ranked)
        except Exception as error:
            log.warning("checkpoint %s could not be amended: %s", self._store.folder(step), error)

    def _commit(self, step: int, body: dict[str, Any], ranked: Sequence[int]) -> None:
        self._store.commit(step, body)
        try:
            self._prune(step, ranked)
        except Exception as error:
            log.warning("old checkpoints in %s could not be removed: %s", self._store.url, error)

    def _prune(self, step: int, ranked: Sequence[int]) -> None:
        # One of a later step is of a past that this run has gone back on.
        committed = [other for other in self._store.committed() if other <= step]
        best = [other for other in ranked if other in committed][: self._keep_best]
        for other in set(self._store.steps()) - {step, *committed[: self._keep_last], *best}:
            self._remove(other)

    def _give_up(self, step: int, error: BaseException) -> None:
        where = self._store.folder(step)
        log.warning(
            "checkpoint %s could not be written: %s. Those before it are kept, and training goes on", where, _words(error)
        )
        self._remove(step)

    def _remove(self, step: int) -> None:
        try:
            self._store.remove(step)
        except Exception as error:
            log.warning("%s could not be removed: %s", self._store.folder(step), error)


def _own_device() -> tuple[int, ...]:
    return (torch.cuda.current_device(),) if torch.cuda.is_available() else ()


def _on_device(*device: int) -> None:
    """Every thread has a current GPU of its own, the first: all workers of a host would take memory there."""
    if device:
        torch.cuda.set_device(device[0])


def _words(error: BaseException) -> str:
    """Of the first worker that failed."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"worker rank {rank}: {type(cause).__name__}: {cause}"
    return f"{type(error).__name__}: {error}"
