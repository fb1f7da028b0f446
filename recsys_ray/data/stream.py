"""MDS row blocks -> batches of columns, on every training worker, by StreamingDataset.

Each worker gets its share of every global batch: whole blocks, concatenated. The order of blocks is Mosaic Streaming's and
depends on seed and epoch, not on the number of workers. To give all workers equal counts it repeats a few blocks at the end of
an epoch; their rows get weight 0, so that no row counts twice while every worker still makes the same collective calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from recsys_ray.config import DataConfig
from recsys_ray.data.blocks import LENGTHS, Block
from recsys_ray.data.mosaic import StreamingDataset, get_partitions
from recsys_ray.data.shard_cache import note_segments

ROW_WEIGHT = "__row_weight__"
"""float32 [rows]: the weight column, or 1; 0 for rows that count nothing: padding, and blocks the epoch has held before."""
PARTITION = "orig"
Columns = dict[str, torch.Tensor]
"""Column name -> its rows [rows]; a multi-valued column has its values end to end and `name.lengths` [rows]."""


@dataclass(frozen=True)
class BatchLayout:
    """A worker's share of a global batch: `blocks` blocks of `block_rows` rows."""

    blocks: int
    block_rows: int

    @property
    def rows(self) -> int:
        return self.blocks * self.block_rows


def batch_layout(global_batch: int, block_rows: int, world_size: int) -> BatchLayout:
    """Raises ValueError when a global batch is not a whole number of blocks for each worker."""
    unit = block_rows * world_size
    if global_batch % unit:
        raise ValueError(
            f"--train.global-batch {global_batch} is not a multiple of block_rows {block_rows} * {world_size} workers: "
            f"use {max(1, round(global_batch / unit)) * unit}"
        )
    return BatchLayout(global_batch // unit, block_rows)


def check_elastic(global_batch: int, block_rows: int, fewest: int, most: int) -> None:
    """Raises ValueError when a run could come to have a number of workers that cannot share a global batch."""
    sizes = range(fewest, most + 1)
    if bad := [size for size in sizes if global_batch % (block_rows * size)]:
        fits = block_rows * math.lcm(*sizes)
        raise ValueError(
            f"--train.global-batch {global_batch} is not a multiple of block_rows {block_rows} * {bad} workers, which an elastic "
            f"run of {fewest} to {most} may come to have: use a multiple of {fits}, or bring --launch.min-workers and "
            "--launch.workers closer together"
        )


class BlockStream:
    """One split, as this worker's batches. Iterating yields one epoch; each iteration the next.

    The shards are copied from `folder` (or its URL) into `cache`, and unpacked there. All workers get batches of equally many
    rows, as TorchRec's row-wise sharding demands, so the one short block of a split is padded with rows of weight 0.
    """

    def __init__(
        self, folder: str, cache: Path, layout: BatchLayout, seed: int, shuffle: bool, config: DataConfig, weight: str
    ) -> None:
        self._dataset = StreamingDataset(
            remote=folder,
            local=str(cache),
            batch_size=layout.blocks,
            shuffle=shuffle,
            shuffle_seed=seed,
            num_canonical_nodes=config.num_canonical_nodes,
            predownload=max(config.predownload, layout.blocks),
            partition_algo=PARTITION,
        )
        note_segments(cache.parent, self._dataset._shm_prefix_int)
        workers = config.loader_workers if config.loader_workers is not None else 2 * torch.cuda.is_available()
        self._loader = DataLoader(
            self._dataset,
            batch_size=layout.blocks,
            num_workers=workers,
            # Of its own: else it would draw from that of the model's dropout, once an epoch and once more after a resume.
            generator=torch.Generator(),
            collate_fn=partial(_concatenate, layout.block_rows),
            persistent_workers=workers > 0,
            multiprocessing_context="forkserver" if workers else None,
        )
        self._layout, self._weight, self._canonical_nodes = layout, weight, config.num_canonical_nodes
        self._first_time = _first_time(self._dataset, config.num_canonical_nodes, layout.blocks, 0)
        self._rest_of_epoch: torch.Tensor | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch, equal on every worker."""
        return -(-len(self._first_time) // self._layout.blocks)

    def start_at(self, epoch: int, steps: int) -> None:
        """The next iteration is the rest of `epoch`, counted from 0, after its first `steps` global batches, however many workers
        read those. Every worker calls it."""
        dataset, world = self._dataset, self._dataset._unique_rank_world
        dataset.next_epoch = epoch
        done = steps * self._layout.blocks * world.num_ranks
        # Also without steps: StreamingDataset would go back to a place it was given for this or a later epoch.
        place = {"epoch": epoch, "sample_in_epoch": done, "num_canonical_nodes": self._canonical_nodes}
        dataset.load_state_dict({**place, "shuffle_seed": dataset.shuffle_seed, "initial_physical_nodes": world.num_nodes})
        self._rest_of_epoch = _first_time(dataset, self._canonical_nodes, self._layout.blocks, done) if steps else None
        dist.barrier()

    def once(self) -> Iterator[Columns]:
        """All rows, outside of training: the iteration after it is the one that was to come. Every worker calls it."""
        epoch = self._dataset.next_epoch
        dist.barrier()  # the workers of a host share that number: all must have read it before any sets it
        self.start_at(0, 0)
        yield from self
        self.start_at(epoch, 0)

    def __iter__(self) -> Iterator[Columns]:
        blocks, block_rows = self._layout.blocks, self._layout.block_rows
        first_time = self._first_time if self._rest_of_epoch is None else self._rest_of_epoch
        self._rest_of_epoch = None
        for step, columns in enumerate(self._loader):
            first = first_time[step * blocks : (step + 1) * blocks].repeat_interleave(block_rows)
            weight = columns[ROW_WEIGHT] * first
            yield {**columns, ROW_WEIGHT: weight * columns.pop(self._weight) if self._weight else weight}


def _concatenate(block_rows: int, blocks: list[Block]) -> Columns:
    padded = [_pad(block, block_rows) for block in blocks]
    return {name: torch.from_numpy(np.concatenate([block[name] for block in padded])) for name in padded[0]}


def _pad(block: Block, block_rows: int) -> Block:
    """The block at full length, with its ROW_WEIGHT. A multi-valued column gets lengths of 0, hence no values."""
    multi = {name.removesuffix(LENGTHS) for name in block if name.endswith(LENGTHS)}
    rows = next(len(values) for name, values in block.items() if name not in multi)
    present = np.zeros(block_rows, np.float32)
    present[:rows] = 1
    if rows == block_rows:
        return {**block, ROW_WEIGHT: present}
    short = {name: values if name in multi else np.pad(values, (0, block_rows - rows)) for name, values in block.items()}
    return {**short, ROW_WEIGHT: present}


def _first_time(dataset: StreamingDataset, canonical_nodes: int, blocks: int, done: int) -> torch.Tensor:
    """float32, one entry per block that this worker reads in an epoch after its first `done` blocks: 1 where the epoch holds it
    for the first time, else 0."""
    world: Any = dataset._unique_rank_world
    shape = (world.num_nodes, world.ranks_per_node, 1, blocks)
    ranks = get_partitions(PARTITION, dataset.epoch_size, canonical_nodes, *shape, done).reshape(world.num_ranks, -1)
    in_time_order = ranks.T.flatten()
    first = np.zeros(len(in_time_order), np.float32)
    first[np.unique(in_time_order, return_index=True)[1]] = 1
    if done:
        whole = get_partitions(PARTITION, dataset.epoch_size, canonical_nodes, world.num_nodes, 1, 1, 1)
        before = whole.reshape(world.num_nodes, -1).T.flatten()[:done]
        first[np.isin(in_time_order, before)] = 0
    mine = first.reshape(-1, len(ranks))[:, world.rank]
    return torch.from_numpy(mine[ranks[world.rank] != -1])
