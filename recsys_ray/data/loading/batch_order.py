"""Which blocks each worker reads in each step, for any number of workers.

The blocks of an epoch in order of time are cut into global batches, and each is dealt out to the workers in turn. Where they
cannot have equally many, the slots left over hold blocks of the same batch once more, which count nothing: all workers need
equally many rows, but the global batch must not depend on their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
NONE = -1
"""In a slot: no block, at the end of a batch that is the last of its epoch and short."""


def batch_slots(order: Ids, global_blocks: int, workers: int) -> Ids:
    """Blocks in order of time -> [batches, slots], as many slots as all workers read together in a step."""
    slots = -(-global_blocks // workers) * workers
    whole, rest = order[: len(order) // global_blocks * global_blocks].reshape(-1, global_blocks), len(order) % global_blocks
    batches = whole[:, np.arange(slots) % global_blocks]
    if not rest:
        return batches
    last = np.full((1, slots), NONE, np.int64)
    used = -(-rest // workers) * workers
    last[0, :used] = np.resize(order[-rest:], used)
    return np.concatenate([batches, last])


def shares(slots: NDArray, nodes: int, ranks: int) -> NDArray:
    """[batches, slots] -> [nodes, ranks per node, batches, a worker's slots].

    Round the nodes first, as Mosaic Streaming's partition does: with as many canonical nodes, each node reads shards of its own.
    """
    each = slots.shape[1] // (nodes * ranks)
    return slots.reshape(len(slots), each, ranks, nodes).transpose(3, 2, 0, 1)


def among_loaders(shares: Ids, loaders: int) -> Ids:
    """[nodes, ranks, batches, slots] -> [nodes, ranks, loader processes, batches, slots]: a DataLoader asks them in turn."""
    nodes, ranks, batches, slots = shares.shape
    even = np.full((nodes, ranks, -batches % loaders, slots), NONE, np.int64)
    return np.concatenate([shares, even], 2).reshape(nodes, ranks, -1, loaders, slots).transpose(0, 1, 3, 2, 4)


def counted(order: Ids, done: int, global_blocks: int, workers: int) -> NDArray[np.float32]:
    """[batches, slots] of an epoch after its first `done` blocks: 1 where the epoch holds a block for the first time, else 0.

    `order`: the whole epoch; it may hold a block twice, where Mosaic Streaming evens out its canonical nodes.
    """
    slots = batch_slots(np.arange(done, len(order)), global_blocks, workers)
    first_slots = np.zeros(slots.shape, bool)
    first_slots.flat[np.unique(slots, return_index=True)[1]] = True
    first_places = np.zeros(len(order), bool)
    first_places[np.unique(order, return_index=True)[1]] = True
    return (first_slots & (slots != NONE) & first_places[slots]).astype(np.float32)
