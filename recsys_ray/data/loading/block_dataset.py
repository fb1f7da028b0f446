"""Mosaic Streaming's dataset of one split: it assigns blocks to any number of workers and raises shard errors in the consumer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_ray.compat.streaming_compat import (
    TICK,
    EpochPosition,
    ExtensibleDataset,
    ShardState,
    StreamingWorld,
    generate_work_random_batching,
    get_partitions,
)
from recsys_ray.data.blocks.reader import EncodedBlock
from recsys_ray.data.loading.batch_order import (
    EMPTY,
    Ids,
    assign_batches,
    decode_blocks,
    decode_slot,
    encode_slots,
    share_among_loaders,
    share_among_workers,
)
from recsys_ray.data.loading.shards import CheckedStream

PARTITION = "orig"
SHARDS_AT_ONCE = 2
"""Fetched in parallel. Each takes its size in memory, packed and unpacked, while it is."""
SINGLE_WORKER = StreamingWorld(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)


class AssignedBlock(NamedTuple):
    """A block as one slot of a batch holds it."""

    block: EncodedBlock
    counts: bool
    """False where an earlier slot of the epoch holds the same block."""


class BlockDataset(ExtensibleDataset):
    """The blocks of `folder` (or its URL), read from copies of its shards in `cache`. Iterating yields AssignedBlocks.

    `settings` are StreamingDataset's.
    """

    def __init__(self, folder: str, cache: Path, global_blocks: int, canonical_nodes: int, **settings: Any) -> None:
        streams = [CheckedStream(folder, cache)]
        super().__init__(streams, partition_algo=PARTITION, num_canonical_nodes=canonical_nodes, **settings)
        self.global_blocks = global_blocks
        self._failed_shards: set[int] = set()

    @property
    def blocks_per_epoch(self) -> int:
        """The number of blocks in an epoch over all workers, with those that are repeated to even out the canonical nodes."""
        assert self.num_canonical_nodes is not None
        return get_partitions(PARTITION, self.epoch_size, self.num_canonical_nodes, 1, 1, 1, 1).size

    def start_at(self, epoch: int, block: int) -> None:
        """Makes the next iteration the rest of `epoch` after its first `block` blocks."""
        self.next_epoch = epoch
        # Also at the beginning of an epoch: StreamingDataset would return to a place given earlier in this or a later one.
        place = {"epoch": epoch, "sample_in_epoch": block, "num_canonical_nodes": self.num_canonical_nodes}
        self.load_state_dict({**place, "shuffle_seed": self.shuffle_seed, "initial_physical_nodes": self.world.num_nodes})

    def global_order(self, epoch: int) -> Ids:
        """Returns the blocks of an epoch in global sample order, which does not depend on the number of workers."""
        order = generate_work_random_batching(self, SINGLE_WORKER, epoch, 0).flatten()
        return order[order != EMPTY]

    def assign_batches(self, world: StreamingWorld, epoch: int, start: int) -> Ids:
        """Returns the encoded slots of an epoch from its block `start` on.

        [nodes, ranks per node, loader processes, batches, slots]. Mosaic Streaming's own partition does the same for numbers of
        workers that divide the global batch, and knows no others.
        """
        assignment = assign_batches(self.global_order(epoch), start, self.global_blocks, world.num_ranks)
        slots = encode_slots(assignment, self.num_samples)
        return share_among_loaders(share_among_workers(slots, world.num_nodes, world.ranks_per_node), world.workers_per_rank)

    def get_item(self, sample_id: int, retry: int = 7) -> AssignedBlock:
        """Returns the block of an encoded slot. Raises ShardError."""
        block, counts = decode_slot(sample_id, self.num_samples)
        return AssignedBlock(super().get_item(block, retry), counts)

    def shard_positions(self, epoch: int, first: int, count: int) -> list[tuple[str, int]]:
        """Returns the shard file of each of `count` blocks of an epoch, in global sample order, and its number in that shard."""
        spans = [self.spanner[int(block)] for block in self.global_order(epoch)[first : first + count]]
        return [(self.shards[shard].file_pairs[0][0].basename, number) for shard, number in spans]

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Copies and unpacks a shard. Raises ShardError in the consumer, the one who reads the shard (`blocking`).

        An exception in a thread that fetches ahead of time would end the epoch early without a word, and other processes would
        wait for the shard for ever. Such a thread marks the shard as present instead: the consumer does not find it, tries once
        more, and gets the error.
        """
        if not blocking and shard_id in self._failed_shards:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception:
            self.shard_states[shard_id] = ShardState.LOCAL
            self._failed_shards.add(shard_id)
            if blocking:
                raise
        else:
            self._failed_shards.discard(shard_id)

    def fetch_ahead(self, position: EpochPosition) -> None:
        """Fetches shards up to `predownload` blocks ahead, two at a time: the first batches hold blocks of many shards.

        Mosaic Streaming goes from block to block instead of from shard to shard, since it may evict shards. None is evicted here.
        """
        shards, ahead = self._shards_of(position.sample_ids), (self.predownload or 0) + 1
        with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
            while position.prepare_index < position.total and not self.is_cancelled(position):
                stop = min(position.yield_index + ahead, position.total)
                coming = shards[position.prepare_index : stop]
                wanted = dict.fromkeys(coming[self._missing(coming)].tolist())
                list(pool.map(partial(self.prepare_shard, blocking=False), wanted))
                position.prepare_index = max(position.prepare_index, stop)
                sleep(TICK)

    def follow_fetched(self, position: EpochPosition) -> None:
        """Looks at all blocks that are left at once, where Mosaic Streaming goes from block to block."""
        shards = self._shards_of(position.sample_ids)
        while position.ready_index < position.total and not self.is_cancelled(position):
            missing = np.flatnonzero(self._missing(shards[position.ready_index :]))
            position.ready_index = position.ready_index + int(missing[0]) if len(missing) else position.total
            sleep(TICK)

    def _shards_of(self, slots: Ids) -> Ids:
        """The shard of each encoded slot, EMPTY where there is no block."""
        blocks = decode_blocks(slots, self.num_samples)
        return np.where(blocks == EMPTY, EMPTY, np.searchsorted(self.sample_offset_per_shard, blocks, side="right") - 1)

    def _missing(self, shards: Ids) -> NDArray[np.bool_]:
        return (shards != EMPTY) & (self.shard_states[shards] != ShardState.LOCAL)
