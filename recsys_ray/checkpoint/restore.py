"""Restores the newest intact checkpoint, under any world size or sharding plan."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.futures import Future

from recsys_ray.checkpoint.store import CheckpointStore, with_retries
from recsys_ray.compat.torch_compat import FsspecReader

log = logging.getLogger(__name__)


class IntactCheckpoint(NamedTuple):
    """A committed checkpoint whose files all match their checksums."""

    step: int
    note: dict[str, Any]
    """The JSON values given to Saver.save: progress, identity and settings of the run."""


def newest_intact(store: CheckpointStore) -> IntactCheckpoint | None:
    """Returns the newest intact checkpoint, or None if there is no checkpoint. Every worker calls it.

    Each file is read once for its checksum, by one of the workers. Damaged checkpoints are skipped with a warning. Raises
    ValueError if all are damaged.
    """
    steps: list[list[int]] = [store.committed() if dist.get_rank() == 0 else []]
    dist.broadcast_object_list(steps)  # on shared storage workers need not see the same files at the same moment
    return first_intact(store, steps[0]) if steps[0] else None


def first_intact(store: CheckpointStore, steps: list[int]) -> IntactCheckpoint:
    """Returns the first intact checkpoint of these steps. Raises ValueError if none is. Every worker calls it."""
    for step in steps:
        marker, fault = _marker(store, step)
        if not (fault := fault or _fault(store, step, marker["files"])):
            return IntactCheckpoint(step, marker["note"])
        if dist.get_rank() == 0:
            log.warning("checkpoint %s is damaged (%s): trying the next one", store.folder(step), fault)
    raise ValueError(f"every checkpoint in {store.url} is damaged: restore one, or remove them all to start anew")


def _marker(store: CheckpointStore, step: int) -> tuple[dict[str, Any], str]:
    """The marker's body, as rank 0 reads it, and what is wrong with it or ""."""
    found: list[tuple[dict[str, Any], str]] = [({}, "")]
    if dist.get_rank() == 0:
        try:
            found[0] = store.marker(step), ""
        except ValueError as error:
            found[0] = {}, str(error)
    dist.broadcast_object_list(found)
    return found[0]


def _fault(store: CheckpointStore, step: int, files: dict[str, dict[str, Any]]) -> str:
    """What is wrong with a file, or "" if nothing is. The workers check the files round-robin."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    faults = [store.fault(step, name, files[name]["bytes"], files[name]["checksum"]) for name in sorted(files)[rank::workers]]
    found: list[str] = [""] * workers
    dist.all_gather_object(found, next((fault for fault in faults if fault), ""))
    return next((fault for fault in found if fault), "")


def saved_tensor_sizes(store: CheckpointStore, step: int) -> dict[str, torch.Size]:
    """Returns the size of every tensor in a checkpoint, by its keys in the state joined with dots."""
    metadata = _Reader(store.folder(step)).read_metadata().state_dict_metadata
    return {name: found.size for name, found in metadata.items() if isinstance(found, TensorStorageMetadata)}


def restore(store: CheckpointStore, step: int, state: dict[str, Any], alone: bool = False) -> None:
    """Fills `state` in place, which must hold every tensor that is wanted. Every worker calls it, or one `alone`."""
    dcp.load(state, storage_reader=_Reader(store.folder(step)), no_dist=alone)


class _Reader(FsspecReader):
    """Tries again when the store fails."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return with_retries(f"reading {self.path}", lambda: super(_Reader, self).read_metadata(*args, **kwargs))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        return with_retries(f"reading {self.path}", lambda: super(_Reader, self).read_data(plan, planner))
