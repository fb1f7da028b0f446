"""Mosaic Streaming's dataset of one split, dealt out to any number of workers, whose faults reach whoever reads it.

DataLoader workers import this module when they unpickle the dataset, and so know its batching method.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_ray.compat.streaming_compat import (
    TICK,
    ShardState,
    StreamingDataset,
    StreamState,
    World,
    batching_methods,
    generate_work_random_batching,
    get_partitions,
)
from recsys_ray.data.loading.batch_order import NONE, Ids, among_loaders, batch_slots, counted, shares
from recsys_ray.data.loading.shards import CheckedStream

BATCHING = "global_batches"
PARTITION = "orig"
FETCHED_AT_ONCE = 2
"""Shards; each takes its size in memory, packed and unpacked, while it is."""
ALONE = World(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)


class BlockDataset(StreamingDataset):
    """The blocks of `folder` (or its URL), by way of copies of its shards in `cache`. `settings` are StreamingDataset's."""

    def __init__(self, folder: str, cache: Path, global_blocks: int, canonical_nodes: int, **settings: Any) -> None:
        streams = [CheckedStream(folder, cache)]
        super().__init__(streams=streams, partition_algo=PARTITION, num_canonical_nodes=canonical_nodes, **settings)
        self.global_blocks, self._canonical_nodes = global_blocks, canonical_nodes
        # Its constructor knows no method but its own.
        self.batching_method = BATCHING
        self._given_up: set[int] = set()

    def order(self) -> Ids:
        """An unshuffled epoch in order of time, whatever the number of workers."""
        return get_partitions(PARTITION, self.epoch_size, self._canonical_nodes, 1, 1, 1, 1).flatten()

    def counted(self, done: int) -> NDArray[np.float32]:
        """[batches, blocks] of this worker in an epoch after its first `done` blocks: 1 where a block counts, else 0."""
        world = self._unique_rank_world
        slots = counted(self.order(), done, self.global_blocks, world.num_ranks)
        return shares(slots, world.num_nodes, world.ranks_per_node)[world.node, world.rank_of_node]

    def places(self, epoch: int, first: int, count: int) -> list[tuple[str, int]]:
        """Shard file and number in it of `count` blocks of an epoch, in order of time."""
        order = generate_work_random_batching(self, ALONE, epoch, 0).flatten()
        spans = [self.spanner[int(block)] for block in order[order != NONE][first : first + count]]
        return [(self.shards[shard].file_pairs[0][0].basename, number) for shard, number in spans]

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Raises ShardError to whoever reads the shard (`blocking`).

        The threads that fetch it ahead of time leave an error be: their exceptions would end the epoch early and in silence, and
        for other processes the shard would be in preparation for ever. It passes for present instead, and whoever reads it
        finds it missing, tries once more, and gets the error.
        """
        if not blocking and shard_id in self._given_up:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception:
            self._shard_states[shard_id] = ShardState.LOCAL
            self._given_up.add(shard_id)
            if blocking:
                raise
        else:
            self._given_up.discard(shard_id)

    def _prepare_thread(self, it: StreamState) -> None:
        """As Mosaic Streaming's, but by shard, not by block (no shard is ever evicted), and two at a time: the first batches
        hold blocks of many shards."""
        shards, ahead = self._shards_of(it.sample_ids), (self.predownload or 0) + 1
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            while it.prepare_index < it.total and not it.should_exit() and not self._event.is_set():
                stop = min(it.yield_index + ahead, it.total)
                coming = shards[it.prepare_index : stop]
                wanted = dict.fromkeys(coming[self._missing(coming)].tolist())
                list(pool.map(partial(self.prepare_shard, blocking=False), wanted))
                it.prepare_index = max(it.prepare_index, stop)
                sleep(TICK)
        it.on_exit()

    def _ready_thread(self, it: StreamState) -> None:
        """As Mosaic Streaming's, in one look at all blocks that are left."""
        shards = self._shards_of(it.sample_ids)
        while it.ready_index < it.total and not it.should_exit() and not self._event.is_set():
            missing = np.flatnonzero(self._missing(shards[it.ready_index :]))
            it.ready_index = it.ready_index + int(missing[0]) if len(missing) else it.total
            sleep(TICK)
        it.on_exit()

    def _shards_of(self, blocks: Ids) -> Ids:
        """NONE where there is no block."""
        return np.where(blocks == NONE, NONE, np.searchsorted(self.sample_offset_per_shard, blocks, side="right") - 1)

    def _missing(self, shards: Ids) -> NDArray[np.bool_]:
        return (shards != NONE) & (self._shard_states.numpy()[shards] != ShardState.LOCAL)


def deal(dataset: StreamingDataset, world: World, epoch: int, sample_in_epoch: int) -> Ids:
    """A batching method of Mosaic Streaming: [nodes, ranks per node, loader processes, batches, blocks], NONE at the end.

    Shuffling is its own. Its own partition knows only worlds whose size divides the global batch, and deals the same there.
    """
    assert isinstance(dataset, BlockDataset)
    order = generate_work_random_batching(dataset, ALONE, epoch, 0).flatten()
    slots = batch_slots(order[order != NONE][sample_in_epoch:], dataset.global_blocks, world.num_ranks)
    return among_loaders(shares(slots, world.num_nodes, world.ranks_per_node), world.workers_per_rank)


batching_methods[BATCHING] = deal
