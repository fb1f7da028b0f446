"""Saves checkpoints in the background: training waits for a copy in memory, and a thread writes that while it goes on."""

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
    """Writes and prunes the checkpoints of one run.

    Every worker has one and makes the same calls in the same order. Close it before the process group ends. A checkpoint that
    cannot be written does not end the run: it is removed with a warning, and those before it stay. Once one is committed, only
    the newest `keep_last` are kept, and the first `keep_best` that exist of the steps in `best_first`.
    """

    def __init__(self, store: CheckpointStore, keep_last: int, keep_best: int = 0) -> None:
        self._store, self._keep_last, self._keep_best = store, keep_last, keep_best
        # A group of its own, on the CPU: in one group, the collectives of two threads would be matched with the wrong ones.
        self._group = dist.new_group(backend="gloo")
        self._staging = Staging(self._group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_set_device, initargs=_current_device())
        self._pending: list[Future[Any]] = []

    def reserve(self, state: dict[str, Any]) -> None:
        """Allocates the memory for copies of `state` in the background, so that the first checkpoint need not wait for it."""
        self._pending.append(self._thread.submit(self._staging.reserve, state))

    def release(self) -> None:
        """Frees the memory for copies, once all is written. A later `save` allocates it anew."""
        self.wait()
        self._staging.release()

    def save(self, step: int, state: dict[str, Any], note: dict[str, Any], best_first: Sequence[int] = ()) -> None:
        """Copies `state`, which may hold sharded tensors, and writes the copy in the background, after earlier ones.

        Args:
            note: JSON values, which `newest_intact` returns.
            best_first: steps of checkpoints in the order in which they are worth keeping.
        """
        self.wait()  # the buffers are in use until then
        self._pending.append(self._thread.submit(self._write, step, self._staging.copy(state), note, best_first))

    def amend(self, step: int, note: dict[str, Any], best_first: Sequence[int] = ()) -> None:
        """Replaces the note of a checkpoint that was saved before, if that succeeded."""
        self._pending.append(self._thread.submit(self._amend, step, note, best_first))

    def wait(self) -> None:
        """Returns when all is written, or has failed."""
        for pending in self._pending:
            pending.result()
        self._pending.clear()

    def close(self) -> None:
        """Finishes the checkpoint that is being written, unless a worker has gone."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write(self, step: int, state: dict[str, Any], note: dict[str, Any], best_first: Sequence[int]) -> None:
        rank = dist.get_rank()
        try:
            if rank == 0:
                self._remove(step)  # left by an earlier attempt, unfinished or damaged
            dist.barrier(self._group)
            writer = ChecksumWriter(self._store, step)
            dcp.save(state, storage_writer=writer, process_group=self._group)
            if rank == 0:
                self._commit(step, {"files": writer.files, "note": note}, best_first)
        except (CheckpointException, Exception) as error:  # CheckpointException is no Exception
            if rank == 0:
                self._give_up(step, error)

    def _amend(self, step: int, note: dict[str, Any], best_first: Sequence[int]) -> None:
        if dist.get_rank() != 0:
            return
        try:
            if step in self._store.committed():
                self._commit(step, {**self._store.marker(step), "note": note}, best_first)
        except Exception as error:
            log.warning("checkpoint %s could not be amended: %s", self._store.folder(step), error)

    def _commit(self, step: int, body: dict[str, Any], best_first: Sequence[int]) -> None:
        self._store.commit(step, body)
        try:
            self._prune(step, best_first)
        except Exception as error:
            log.warning("old checkpoints in %s could not be removed: %s", self._store.url, error)

    def _prune(self, step: int, best_first: Sequence[int]) -> None:
        # A later step belongs to a past that this run has abandoned: it resumed from an earlier checkpoint.
        committed = [other for other in self._store.committed() if other <= step]
        best = [other for other in best_first if other in committed][: self._keep_best]
        for other in set(self._store.steps()) - {step, *committed[: self._keep_last], *best}:
            self._remove(other)

    def _give_up(self, step: int, error: BaseException) -> None:
        cause = _describe_first_failure(error)
        failed = "checkpoint %s could not be written: %s. Those before it are kept, and training goes on"
        log.warning(failed, self._store.folder(step), cause)
        self._remove(step)

    def _remove(self, step: int) -> None:
        try:
            self._store.remove(step)
        except Exception as error:
            log.warning("%s could not be removed: %s", self._store.folder(step), error)


def _current_device() -> tuple[int, ...]:
    return (torch.cuda.current_device(),) if torch.cuda.is_available() else ()


def _set_device(*device: int) -> None:
    """Makes this thread use the worker's GPU: by default it uses the first one, where all workers of a host would take memory."""
    if device:
        torch.cuda.set_device(device[0])


def _describe_first_failure(error: BaseException) -> str:
    """Names the failed worker of the lowest rank, if the error names workers."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        return f"worker rank {rank}: {type(cause).__name__}: {cause}"
    return f"{type(error).__name__}: {error}"
