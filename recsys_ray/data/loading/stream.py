"""MDS row blocks -> batches of columns, on every training worker, by StreamingDataset.

Each worker gets its share of every global batch: whole blocks, concatenated. Which blocks a global batch has is Mosaic
Streaming's order and depends on seed, epoch and global batch, not on the number of workers. Where workers cannot share a batch
evenly, some read a block of it once more; those rows get weight 0, so that no row counts twice while every worker still makes
the same collective calls.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config import DataConfig
from recsys_ray.data.blocks.reader import Concatenation, Sample
from recsys_ray.data.loading.block_dataset import BlockDataset
from recsys_ray.data.loading.cache_janitor import note_segments


@dataclass(frozen=True)
class BatchLayout:
    """A global batch of `global_blocks` blocks of `block_rows` rows, shared by `workers`."""

    global_blocks: int
    block_rows: int
    workers: int

    @property
    def blocks(self) -> int:
        """That each worker reads in a step: equally many, so together they may read more than the batch has."""
        return -(-self.global_blocks // self.workers)

    @property
    def rows(self) -> int:
        """That each worker reads in a step."""
        return self.blocks * self.block_rows

    def padding_note(self) -> str:
        """For the log: what uneven shares cost; empty where they are even."""
        read = self.blocks * self.workers
        if not (padding := read - self.global_blocks):
            return ""
        noun, verb = ("block" if self.global_blocks == 1 else "blocks"), ("is" if padding == 1 else "are")
        shared = f"{self.global_blocks} {noun} of a global batch over {self.workers} workers: each reads {self.blocks}"
        return f"{shared}, and {padding} of the {read} {verb} padding that counts nothing ({100 * padding / read:.0f} %)"


def batch_layout(global_batch: int, block_rows: int, world_size: int) -> BatchLayout:
    """Raises ValueError when a global batch is not a whole number of blocks."""
    if global_batch <= 0 or global_batch % block_rows:
        below = max(global_batch, 0) // block_rows * block_rows
        fits = [str(rows) for rows in (below, below + block_rows) if rows]
        raise ValueError(
            f"--train.global-batch {global_batch} is not a positive multiple of the dataset's block_rows {block_rows}: "
            f"use {' or '.join(fits)}"
        )
    return BatchLayout(global_batch // block_rows, block_rows, world_size)


class BlockStream:
    """One split, as this worker's batches. Iterating yields one epoch; each iteration the next. Raises ShardError.

    The shards are copied from `folder` (or its URL) into `cache`, and unpacked there. All workers get batches of equally many
    rows, as TorchRec's row-wise sharding demands, so the one short block of a split is padded with rows of weight 0.
    """

    def __init__(
        self, folder: str, cache: Path, layout: BatchLayout, seed: int, shuffle: bool, config: DataConfig, weight: str
    ) -> None:
        self._dataset = BlockDataset(
            folder,
            cache,
            layout.global_blocks,
            config.num_canonical_nodes,
            batch_size=layout.blocks,
            shuffle=shuffle,
            shuffle_seed=seed,
            predownload=max(config.predownload, layout.blocks),
        )
        note_segments(cache.parent, self._dataset._shm_prefix_int)
        workers = config.loader_workers if config.loader_workers is not None else 2 * torch.cuda.is_available()
        if workers:
            _start_forkserver()
        self._loader = DataLoader(
            self._dataset,
            batch_size=layout.blocks,
            num_workers=workers,
            # Of its own: else it would draw from that of the model's dropout, once an epoch and once more after a resume.
            generator=torch.Generator(),
            collate_fn=partial(_collate, Concatenation.of(self._dataset.shards[0], layout.block_rows)),
            persistent_workers=workers > 0,
            multiprocessing_context="forkserver" if workers else None,
        )
        self._layout, self._weight, self._canonical_nodes = layout, weight, config.num_canonical_nodes
        self.block_rows = layout.block_rows
        self._counted = torch.from_numpy(self._dataset.counted(0))
        self._rest_of_epoch: torch.Tensor | None = None
        self.blocks = len(self._dataset.order())
        """In an epoch over all workers, with those that Mosaic Streaming repeats to even out its canonical nodes."""

    @property
    def steps(self) -> int:
        """Batches in an epoch, equal on every worker."""
        return len(self._counted)

    def start_at(self, epoch: int, blocks: int) -> None:
        """The next iteration is the rest of `epoch`, counted from 0, after its first `blocks` blocks in order of time, whatever
        the batches and the number of workers that read those. Every worker calls it."""
        dataset, done = self._dataset, min(blocks, self.blocks)
        dataset.next_epoch = epoch
        # Also at the beginning: StreamingDataset would go back to a place it was given for this or a later epoch.
        place = {"epoch": epoch, "sample_in_epoch": done, "num_canonical_nodes": self._canonical_nodes}
        nodes = dataset._unique_rank_world.num_nodes
        dataset.load_state_dict({**place, "shuffle_seed": dataset.shuffle_seed, "initial_physical_nodes": nodes})
        self._rest_of_epoch = torch.from_numpy(dataset.counted(done)) if done else None
        dist.barrier()

    def places(self, epoch: int, first: int) -> list[tuple[str, int]]:
        """Of the global batch that begins at block `first` of an epoch: shard file and number of each block in it."""
        return self._dataset.places(epoch, first, self._layout.global_blocks)

    def once(self) -> Iterator[Columns]:
        """All rows, outside of training: the iteration after it is the one that was to come. Every worker calls it."""
        epoch = self._dataset.next_epoch
        dist.barrier()  # the workers of a host share that number: all must have read it before any sets it
        self.start_at(0, 0)
        yield from self
        self.start_at(epoch, 0)

    def __iter__(self) -> Iterator[Columns]:
        counted = self._counted if self._rest_of_epoch is None else self._rest_of_epoch
        self._rest_of_epoch = None
        # Strict: an epoch must not end early and unnoticed.
        for blocks, columns in zip(counted, self._loader, strict=True):
            present = columns[ROW_WEIGHT]
            weight = present * blocks.repeat_interleave(self._layout.block_rows)[: len(present)]
            yield {**columns, ROW_WEIGHT: weight * columns.pop(self._weight) if self._weight else weight}


def _start_forkserver() -> None:
    """It and what comes of it ignore SIGTERM, which may be sent to all processes of a job: the training process still needs their
    blocks to finish its step. They end with that."""
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGTERM, before)


def _collate(concatenation: Concatenation, blocks: list[Sample]) -> Columns:
    """With their ROW_WEIGHT."""
    columns, rows = concatenation(blocks)
    columns[ROW_WEIGHT] = (np.arange(concatenation.block_rows) < rows[:, None]).ravel().astype(np.float32)
    return {name: torch.from_numpy(values) for name, values in columns.items()}
