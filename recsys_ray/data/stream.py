"""MDS row blocks -> batches of columns, on every training worker, by StreamingDataset.

Each worker gets its share of every global batch: whole blocks, concatenated. The order of blocks is Mosaic Streaming's and
depends on seed and epoch, not on the number of workers. To give all workers equal counts it repeats a few blocks at the end of
an epoch; their rows get weight 0, so that no row counts twice while every worker still makes the same collective calls.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
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
        workers = config.loader_workers if config.loader_workers is not None else 2 * torch.cuda.is_available()
        self._loader = DataLoader(
            self._dataset,
            batch_size=layout.blocks,
            num_workers=workers,
            collate_fn=partial(_concatenate, layout.block_rows),
            persistent_workers=workers > 0,
            multiprocessing_context="forkserver" if workers else None,
        )
        self._layout, self._weight = layout, weight
        self._first_time = _first_time(self._dataset, config.num_canonical_nodes, layout.blocks)

    @property
    def steps(self) -> int:
        """Batches in an epoch, equal on every worker."""
        return -(-len(self._first_time) // self._layout.blocks)

    def start_at(self, epoch: int) -> None:
        """The next iteration is that of `epoch`, counted from 0. Every worker calls it."""
        self._dataset.next_epoch = epoch
        dist.barrier()

    def __iter__(self) -> Iterator[Columns]:
        blocks, block_rows = self._layout.blocks, self._layout.block_rows
        for step, columns in enumerate(self._loader):
            first = self._first_time[step * blocks : (step + 1) * blocks].repeat_interleave(block_rows)
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


def _first_time(dataset: StreamingDataset, canonical_nodes: int, blocks: int) -> torch.Tensor:
    """float32, one entry per block that this worker reads in an epoch: 1 where the epoch holds it for the first time, else 0."""
    world: Any = dataset._unique_rank_world
    partition = get_partitions(PARTITION, dataset.epoch_size, canonical_nodes, world.num_nodes, world.ranks_per_node, 1, blocks)
    ranks = partition.reshape(world.num_nodes * world.ranks_per_node, -1)
    in_time_order = ranks.T.flatten()
    first = np.zeros(len(in_time_order), np.float32)
    first[np.unique(in_time_order, return_index=True)[1]] = 1
    mine = first.reshape(-1, len(ranks))[:, world.rank]
    return torch.from_numpy(mine[ranks[world.rank] != -1])


def cache_directory(config: DataConfig, run_dir: str, attempt: str, node: int) -> Path:
    """A folder of this node for this attempt: two runs on one host, or two "nodes" of one host, must not share one."""
    root = Path(config.cache or tempfile.gettempdir()) / f"recsys_ray-{os.getuid()}"
    run = hashlib.sha256(run_dir.encode()).hexdigest()[:8]
    return root / f"{run}-{attempt}" / f"node-{node}"


def remove_cache(cache: Path) -> None:
    shutil.rmtree(cache.parent, ignore_errors=True)
