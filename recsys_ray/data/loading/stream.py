"""Turns MDS row blocks into batches of columns on every training worker.

A worker reads its share of every global batch: whole blocks, concatenated. The order of blocks is Mosaic Streaming's; which of
them make up a batch, and which worker reads which, is decided in batch_order.py and does not depend on the number of workers.
Where they cannot share a batch evenly, some read a block of it once more. Its rows get weight 0, so that no row counts twice
while every worker still makes the same collective calls.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config import DataConfig
from recsys_ray.data.blocks.collator import BlockCollator
from recsys_ray.data.blocks.reader import BlockReader
from recsys_ray.data.loading.block_dataset import AssignedBlock, BlockDataset
from recsys_ray.data.loading.cache_janitor import note_shared_memory
from recsys_ray.data.loading.packed_columns import PackedColumns, copied_ahead, pack
from recsys_ray.data.loading.shared_slots import PREFETCHED, BatchPlace, SharedSlots

LOADERS_OF_A_GPU = 2


@dataclass(frozen=True)
class BatchLayout:
    """A global batch of `global_blocks` blocks of `block_rows` rows, shared by `workers`."""

    global_blocks: int
    block_rows: int
    workers: int

    @property
    def blocks(self) -> int:
        """The number of blocks that each worker reads in a step. Together they may read more than the batch has."""
        return -(-self.global_blocks // self.workers)

    @property
    def rows(self) -> int:
        """The number of rows that each worker reads in a step."""
        return self.blocks * self.block_rows

    def padding_note(self) -> str:
        """Returns what uneven shares cost, as a line for the log, or "" where shares are even."""
        read = self.blocks * self.workers
        if not (padding := read - self.global_blocks):
            return ""
        noun, verb = ("block" if self.global_blocks == 1 else "blocks"), ("is" if padding == 1 else "are")
        shared = f"{self.global_blocks} {noun} of a global batch over {self.workers} workers: each reads {self.blocks}"
        return f"{shared}, and {padding} of the {read} {verb} padding that counts nothing ({100 * padding / read:.0f} %)"


def batch_layout(global_batch: int, block_rows: int, world_size: int) -> BatchLayout:
    """Returns how workers share a global batch of so many rows. Raises ValueError unless it is a whole number of blocks."""
    if global_batch <= 0 or global_batch % block_rows:
        below = max(global_batch, 0) // block_rows * block_rows
        fits = [str(rows) for rows in (below, below + block_rows) if rows]
        raise ValueError(
            f"--train.global-batch {global_batch} is not a positive multiple of the dataset's block_rows {block_rows}: "
            f"use {' or '.join(fits)}"
        )
    return BatchLayout(global_batch // block_rows, block_rows, world_size)


class BlockStream:
    """The batches of one split that this worker reads. Each iteration yields the next epoch. Raises ShardError.

    All workers get batches of equally many rows, as TorchRec's row-wise sharding demands, so the one short block of a split is
    padded with rows of weight 0.

    Args:
        folder: the split, a folder or its URL.
        cache: where its shards are copied to and unpacked.
        seed: of the shuffle.
        weight: the column of row weights, or "". It is multiplied into ROW_WEIGHT.
    """

    def __init__(
        self, folder: str, cache: Path, layout: BatchLayout, *, seed: int, shuffle: bool, config: DataConfig, weight: str
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
        note_shared_memory(cache.parent, self._dataset.shared_memory_number)
        loaders = LOADERS_OF_A_GPU * torch.cuda.is_available() if config.loader_workers is None else config.loader_workers
        self._slots = SharedSlots.allocate(loaders, _slot_bytes(self._dataset, layout)) if loaders else None
        self._loader = _data_loader(self._dataset, layout, loaders, self._slots)
        self._layout, self._weight = layout, weight
        self._blocks_done = 0
        self.block_rows = layout.block_rows
        self.blocks = self._dataset.blocks_per_epoch
        """In an epoch over all workers, with those that Mosaic Streaming repeats to even out its canonical nodes."""

    @property
    def steps(self) -> int:
        """Batches in an epoch, equally many on every worker."""
        return self._steps_after(0)

    def start_at(self, epoch: int, blocks: int) -> None:
        """Makes the next iteration the rest of `epoch`, counted from 0, after its first `blocks` blocks in global sample order.

        The batches and the number of workers that read those blocks do not matter. Every worker calls it.
        """
        self._blocks_done = min(blocks, self.blocks)
        self._dataset.start_at(epoch, self._blocks_done)
        dist.barrier()

    def places(self, epoch: int, first: int) -> list[tuple[str, int]]:
        """Returns the shard file and number of each block in the global batch that begins at block `first` of an epoch."""
        return self._dataset.shard_positions(epoch, first, self._layout.global_blocks)

    def once(self) -> Iterator[Columns]:
        """Yields all rows of the split once, for an evaluation. Every worker calls it.

        Afterwards the stream is at the beginning of the epoch that was next before.
        """
        epoch = self._dataset.next_epoch
        dist.barrier()  # the workers of a host share that number: all must have read it before any sets it
        self.start_at(0, 0)
        yield from self
        self.start_at(epoch, 0)

    def __iter__(self) -> Iterator[Columns]:
        for batch in self._batches():
            # Cloned, since a loader process will write into the slot again.
            yield self._weighted(batch.clone().columns() if isinstance(batch, PackedColumns) else batch)

    def on_device(self, device: torch.device) -> Iterator[Columns]:
        """Iterates like the stream itself, with all columns on `device`; a GPU copies the next batch while one is used."""
        if device.type == "cpu":
            yield from self
            return
        if self._slots is not None:
            self._slots.page_lock()
        yield from map(self._weighted, copied_ahead(self._batches(), device))

    def _batches(self) -> Iterator[Any]:
        """Yields the rest of an epoch: Columns, or PackedColumns that are good until the next but one is asked for."""
        expected, self._blocks_done, steps = self._steps_after(self._blocks_done), 0, 0
        for batch in self._loader:
            yield self._slots.get(batch) if self._slots is not None and isinstance(batch, BatchPlace) else batch
            steps += 1
        if steps != expected:
            raise RuntimeError(f"the data ended after {steps} of {expected} steps, on this worker")

    def _weighted(self, columns: Columns) -> Columns:
        weight = columns[ROW_WEIGHT]
        return {**columns, ROW_WEIGHT: weight * columns.pop(self._weight) if self._weight else weight}

    def _steps_after(self, blocks: int) -> int:
        return -(-(self.blocks - blocks) // self._layout.global_blocks)


def _data_loader(dataset: BlockDataset, layout: BatchLayout, loaders: int, slots: SharedSlots | None) -> DataLoader:
    if loaders:
        _start_forkserver()
    collate = partial(_collate, BlockCollator.of(dataset.shards[0], layout.block_rows))
    return DataLoader(
        dataset,
        batch_size=layout.blocks,
        num_workers=loaders,
        # Without one the loader would draw from the model's generator, for dropout: once an epoch and again after a resume.
        generator=torch.Generator(),
        collate_fn=partial(_hand_over, collate, slots),
        prefetch_factor=PREFETCHED if loaders else None,
        persistent_workers=loaders > 0,
        multiprocessing_context="forkserver" if loaders else None,
    )


def _slot_bytes(dataset: BlockDataset, layout: BatchLayout) -> int:
    """Returns the bytes of a slot, where ids of one byte in the shards have four: more than nearly any batch needs."""
    block = max(shard.raw_data.bytes / shard.samples for shard in dataset.shards if isinstance(shard, BlockReader))
    return int(layout.blocks * (4 * block + 8 * layout.block_rows)) + 4096


def _start_forkserver() -> None:
    """Starts the process that forks loader processes, with SIGTERM ignored in it and in them.

    SIGTERM may be sent to all processes of a job, and the training process still needs their blocks to finish its step. They end
    with that process.
    """
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGTERM, before)


def _hand_over(collate: Callable[..., Columns], slots: SharedSlots | None, blocks: list[AssignedBlock]) -> Any:
    """Returns the columns of a batch, or in a loader process where they are, or packed; in this process of a GPU packed."""
    columns = collate(blocks)
    if slots is not None:
        return slots.put(columns)
    return pack(columns) if torch.cuda.is_available() else columns


def _collate(collator: BlockCollator, blocks: list[AssignedBlock]) -> Columns:
    """Returns the blocks' columns, and as ROW_WEIGHT 1 for each row that counts and 0 for repeats and padding."""
    columns, rows = collator([block for block, _ in blocks])
    counted = rows * np.array([counts for _, counts in blocks])
    columns[ROW_WEIGHT] = (np.arange(collator.block_rows) < counted[:, None]).ravel().astype(np.float32)
    return {name: torch.from_numpy(values) for name, values in columns.items()}
