"""Imports Mosaic Streaming, and gives public names to what this package uses of its private parts.

Why each private part is needed:

* `ExtensibleDataset` and `ExtensibleStream` turn private methods into hooks: Mosaic Streaming fetches shards one at a time and
  passes over their errors, and offers no public place to change that, nor to assign samples to batches.
* `EpochPosition` and `ShardState` are what those hooks work with.
* `separate_shared_memory`, `own_shared_memory_names` and `patch_shared_memory` settle how processes of one host name and open
  their shared memory.

`import streaming` also imports its vision, text and multimodal parts, hence torchvision, which cannot be installed with a
CPU-only torch from the same source, and transformers, which takes most of a second. This package needs none of them.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType
from typing import Any

import numpy as np
from numpy import typing as npt

from recsys_ray.compat.versions import require_version

require_version("mosaicml-streaming", ["0.13"])


@contextmanager
def stand_ins_for_unused_modules() -> Iterator[None]:
    """Puts empty modules in the place of those that `import streaming` wants and nothing here uses.

    Those of transformers are removed again, so that it can be imported later; it has two types that streaming looks for.
    """
    for part in ("vision", "text", "multimodal"):
        sys.modules.setdefault(f"streaming.{part}", ModuleType(f"streaming.{part}"))
    stand_ins = {"transformers": ModuleType("transformers")}
    for module, name in (("feature_extraction_utils", "BatchFeature"), ("tokenization_utils_base", "BatchEncoding")):
        stand_ins[f"transformers.{module}"] = ModuleType(module)
        setattr(stand_ins[f"transformers.{module}"], name, type(name, (), {}))
    if "transformers" in sys.modules:
        stand_ins = {}
    sys.modules |= stand_ins
    try:
        yield
    finally:
        for module in stand_ins:
            del sys.modules[module]


with stand_ins_for_unused_modules():
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.batching import batching_methods
    from streaming.base.batching.random import generate_work_random_batching
    from streaming.base.constant import TICK
    from streaming.base.dataset import _Iterator as EpochPosition
    from streaming.base.dataset import _ShardState as ShardState
    from streaming.base.format import Reader
    from streaming.base.format.mds.encodings import NDArray
    from streaming.base.format.mds.reader import MDSReader
    from streaming.base.partition import get_partitions
    from streaming.base.shared import memory, prefix
    from streaming.base.world import World as StreamingWorld

__all__ = [
    "TICK",
    "EpochPosition",
    "ExtensibleDataset",
    "ExtensibleStream",
    "MDSReader",
    "MDSWriter",
    "NDArray",
    "Reader",
    "ShardState",
    "Stream",
    "StreamingDataset",
    "StreamingWorld",
    "generate_work_random_batching",
    "get_partitions",
    "own_shared_memory_names",
    "patch_shared_memory",
    "separate_shared_memory",
]

ASSIGN_BATCHES = "assign_batches"
"""The name of `ExtensibleDataset`'s batching method among Mosaic Streaming's."""
FIRST_OWN_NAME = 10_000_000
"""The numbers of `own_shared_memory_names` begin above those of any worker."""
SIZING_SECONDS = 30.0
"""Within which a worker that creates a segment of shared memory gives it its size."""


def separate_shared_memory(same_host_offset: int) -> None:
    """Makes this worker look for free names of shared memory in a range of its own.

    Where workers of one host count as nodes of their own, all would otherwise take the first free names at the same moment.

    Args:
        same_host_offset: how many such workers of this host come before this one.
    """
    prefix._each_prefix_int = lambda: itertools.count(1000 * same_host_offset)


@contextmanager
def own_shared_memory_names() -> Iterator[None]:
    """Makes Mosaic Streaming look for free names of shared memory in a range of this process's own while the context lasts.

    Processes that have nothing to do with each other would otherwise take the same free name at the same moment, and all but one
    would fail.
    """
    earlier = prefix._each_prefix_int
    prefix._each_prefix_int = lambda: itertools.count(FIRST_OWN_NAME + 1000 * os.getpid())
    try:
        yield
    finally:
        prefix._each_prefix_int = earlier


def patch_shared_memory() -> None:
    """Makes Mosaic Streaming wait in this process until a segment of shared memory has its size. Repeated calls change nothing.

    Between the creation of a segment and its sizing another worker may find it empty: Mosaic Streaming allows 7 ms for that,
    less than a busy host can take.
    """
    memory.BuiltinSharedMemory = _sized_shared_memory  # type: ignore[assignment, misc]


def _sized_shared_memory(name: str, create: bool, size: int = 0) -> SharedMemory:
    deadline = time.monotonic() + SIZING_SECONDS
    while True:
        try:
            return SharedMemory(name, create, size)
        except ValueError as error:
            if create:
                raise
            if time.monotonic() > deadline:
                gone = f"shared memory {name} was begun by a worker that has gone: remove /dev/shm/{name}"
                raise TimeoutError(gone) from error
            time.sleep(TICK)


class ExtensibleStream(Stream):
    """A Stream whose subclasses may override how a file is copied into the cache."""

    def copy_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Copies a file of the remote folder into the cache, under another name if `to_basename` is given. Returns its path."""
        return super()._download_file(from_basename, to_basename)

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        return self.copy_file(from_basename, to_basename)


class ExtensibleDataset(StreamingDataset):
    """A StreamingDataset whose subclasses decide which samples each worker reads, and how shards are fetched ahead of time."""

    def __init__(self, streams: Sequence[Stream], **settings: Any) -> None:
        patch_shared_memory()
        super().__init__(streams=streams, **settings)
        # Its constructor accepts the library's own batching methods only.
        self.batching_method = ASSIGN_BATCHES

    def __iter__(self) -> Iterator[Any]:
        # DataLoader's workers get the dataset pickled: the constructor has not run there.
        patch_shared_memory()
        batching_methods[ASSIGN_BATCHES] = _assign_batches
        return super().__iter__()

    def assign_batches(self, world: StreamingWorld, epoch: int, start: int) -> npt.NDArray[np.int64]:
        """Returns the samples of an epoch from its sample `start` on; `get_item` is called with each.

        int64 [nodes, ranks per node, loader processes, batches, samples of a batch], -1 where a batch is short.
        """
        raise NotImplementedError

    def fetch_ahead(self, position: EpochPosition) -> None:
        """Fetches the shards of an epoch in a background thread and keeps `position.prepare_index` up to date."""
        raise NotImplementedError

    def follow_fetched(self, position: EpochPosition) -> None:
        """Moves `position.ready_index`, in a background thread, up to the first sample whose shard is not there yet."""
        raise NotImplementedError

    def is_cancelled(self, position: EpochPosition) -> bool:
        """Returns whether the background threads of an epoch have to end: another one has begun, or a thread has failed."""
        return position.should_exit() or self._event.is_set()

    @property
    def shard_states(self) -> npt.NDArray[np.uint8]:
        """The ShardState of every shard, in memory that all processes of the node share."""
        return self._shard_states.numpy()

    @property
    def world(self) -> StreamingWorld:
        """The nodes and ranks as this dataset sees them."""
        return self._unique_rank_world

    @property
    def shared_memory_number(self) -> int:
        """The number by which all shared memory and lock files of this dataset are named."""
        return self._shm_prefix_int

    def _prepare_thread(self, it: EpochPosition) -> None:
        self.fetch_ahead(it)
        it.on_exit()

    def _ready_thread(self, it: EpochPosition) -> None:
        self.follow_fetched(it)
        it.on_exit()


def _assign_batches(dataset: StreamingDataset, world: StreamingWorld, epoch: int, sample_in_epoch: int) -> npt.NDArray[np.int64]:
    assert isinstance(dataset, ExtensibleDataset)
    return dataset.assign_batches(world, epoch, sample_in_epoch)
