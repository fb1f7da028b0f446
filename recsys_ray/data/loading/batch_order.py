"""Decides which blocks each worker reads in each step, for any number of workers.

Mosaic Streaming, whose "sample" is one row block, shuffles the blocks of an epoch. That sequence, the global sample order, is cut
into global batches, and the blocks of a batch go round-robin to the workers:

    global sample order -> assign_batches -> share_among_workers -> share_among_loaders -> what StreamingDataset reads

All workers must read equally many rows in a step, yet a global batch must not depend on their number. Where they cannot have
equally many blocks, the slots left over repeat blocks of the same batch, and these repeats do not count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
EMPTY = -1
"""The value of a slot without a block: the last batch of an epoch may be short."""


class Assignment(NamedTuple):
    """The contents of batches, slot by slot: all workers together read one slot for each of their blocks in a step."""

    blocks: Ids
    """[batches, slots], EMPTY where there is none."""
    counted: NDArray[np.bool_]
    """[batches, slots]: whether the slot is the first of the epoch to hold its block."""


def assign_batches(order: Ids, start: int, global_blocks: int, workers: int) -> Assignment:
    """Cuts an epoch from its block `start` on into global batches and fills the slots of each.

    Args:
        order: the whole epoch in global sample order. Mosaic Streaming repeats blocks there to even out its canonical nodes.
        start: how many blocks of it have been read, by whatever batches.
        global_blocks: blocks of a global batch.
        workers: how many share it.
    """
    first_in_order = _first_occurrences(order)
    places = fill_slots(np.arange(start, len(order)), global_blocks, workers)
    filled = places != EMPTY
    counted = filled & _first_occurrences(places.ravel()).reshape(places.shape)
    counted[filled] &= first_in_order[places[filled]]
    return Assignment(np.where(filled, order[places], EMPTY), counted)


def encode_slots(assignment: Assignment, block_count: int) -> Ids:
    """Returns an assignment as one array, since StreamingDataset carries nothing but numbers from here to where they are read.

    A block that does not count has its number raised by `block_count`, the number of all blocks.
    """
    return np.where(assignment.counted | (assignment.blocks == EMPTY), assignment.blocks, assignment.blocks + block_count)


def decode_slot(slot: int, block_count: int) -> tuple[int, bool]:
    """Returns the block of an encoded slot that is not EMPTY, and whether it counts there."""
    return slot % block_count, slot < block_count


def decode_blocks(slots: Ids, block_count: int) -> Ids:
    """Returns the block of each encoded slot, EMPTY where there is none."""
    return np.where(slots == EMPTY, EMPTY, slots % block_count)


def fill_slots(positions: Ids, global_blocks: int, workers: int) -> Ids:
    """Returns positions in the epoch by slot, [batches, slots]: cut into batches, each repeated to equal shares for all workers.

    Only the last batch can be short: it fills as many slots as give the workers equal shares, and the rest stay EMPTY.
    """
    slots = -(-global_blocks // workers) * workers
    whole_batches = len(positions) // global_blocks
    whole, rest = positions[: whole_batches * global_blocks].reshape(-1, global_blocks), len(positions) % global_blocks
    batches = whole[:, np.arange(slots) % global_blocks]
    if not rest:
        return batches
    last = np.full((1, slots), EMPTY, np.int64)
    used = -(-rest // workers) * workers
    last[0, :used] = np.resize(positions[-rest:], used)
    return np.concatenate([batches, last])


def share_among_workers(slots: Ids, nodes: int, ranks: int) -> Ids:
    """Assigns the slots of each batch to workers round-robin.

    [batches, slots] -> [nodes, ranks per node, batches, a worker's slots].

    Nodes come first, as in Mosaic Streaming's own partition: with as many canonical nodes, each node reads shards of its own.
    """
    each = slots.shape[1] // (nodes * ranks)
    return slots.reshape(len(slots), each, ranks, nodes).transpose(3, 2, 0, 1)


def share_among_loaders(shares: Ids, loaders: int) -> Ids:
    """Assigns the batches of each worker to its loader processes, which a DataLoader polls round-robin.

    [nodes, ranks, batches, slots] -> [nodes, ranks, loader processes, batches, slots].
    """
    nodes, ranks, batches, slots = shares.shape
    padding = np.full((nodes, ranks, -batches % loaders, slots), EMPTY, np.int64)
    return np.concatenate([shares, padding], 2).reshape(nodes, ranks, -1, loaders, slots).transpose(0, 1, 3, 2, 4)


def _first_occurrences(values: Ids) -> NDArray[np.bool_]:
    """Whether each element is the first of its value."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first
