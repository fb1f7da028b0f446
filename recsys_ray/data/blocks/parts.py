"""Rows -> MDS row blocks, in parts that tasks write in parallel, with each row in exactly one block.

Every attempt of a write task writes into a folder of its own, and only the folders of attempts that succeeded are kept, so a
retried task leaves no duplicate. The rows that do not fill a block travel back with the task's result, and the driver packs
them: every block of a split is full but its last. `index.json` of each split is merged and written last.
"""

from __future__ import annotations

import logging
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH, SPLIT_COLUMN, SPLITS
from recsys_ray.compat.streaming_compat import merge_index
from recsys_ray.data.blocks.layout import cut
from recsys_ray.data.blocks.records import unpacked
from recsys_ray.data.blocks.writer import BlockWriter
from recsys_ray.data.dataset.directory import remove_folder
from recsys_ray.data.sources.source import hash_sum

COMPRESSION = "zstd:1"
"""Of ids and numbers, higher levels save next to nothing: 3 takes 40 % longer than 1 for 0.5 % fewer bytes."""
SHARD_BYTES = 1 << 26
MIN_ROWS_PER_PART = 1 << 16
PART_BYTES = 1 << 27


@dataclass
class PartWritten:
    """What one write task reports: its folder, the sum of its rows' hashes, rows by split, and those too few to fill a block."""

    folder: str
    hash_sum: int
    rows: dict[str, int] = field(default_factory=dict)
    leftover: dict[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    rows: dict[str, int]
    """Of each split."""
    hash_sum: int


@dataclass(frozen=True)
class PartWriter:
    """Writes packed rows with a SPLIT_COLUMN and ROW_HASH into `root`/train, validation and test, as blocks with the MDS
    `columns`."""

    root: Path
    columns: dict[str, str]
    block_rows: int
    part_rows: int
    """What a task can hold, about."""

    def start(self) -> None:
        """On the driver, before any task writes."""
        for split in SPLITS:
            (self.root / split).mkdir()

    def write(self, table: pa.Table, number: int) -> PartWritten:
        """In a task, which may be one of several attempts: the rows of part `number`, shuffled."""
        part = PartWritten(f"part-{number:05d}-{uuid.uuid4().hex[:8]}", hash_sum(table))
        for index, split in enumerate(SPLITS):
            rows = table.filter(pc.equal(table[SPLIT_COLUMN], index)).drop_columns([SPLIT_COLUMN, ROW_HASH])
            whole = rows.num_rows - rows.num_rows % self.block_rows
            if whole:
                self._write_blocks(self.root / split / part.folder, rows.slice(0, whole))
            # A slice would take all rows along when it is sent to the driver.
            part.rows[split], part.leftover[split] = whole, rows.take(np.arange(whole, rows.num_rows))
        return part

    def commit(self, parts: list[PartWritten]) -> Written:
        """On the driver, with one report for each part."""
        parts, rows = sorted(parts, key=lambda part: part.folder), {}
        for split in SPLITS:
            folders = [part.folder for part in parts if part.rows[split]]
            leftover = pa.concat_tables([part.leftover[split] for part in parts])
            rows[split] = sum(part.rows[split] for part in parts) + leftover.num_rows
            if leftover.num_rows:
                order = np.random.default_rng(0).permutation(leftover.num_rows)
                self._write_blocks(self.root / split / "part-leftover", leftover.take(order))
                folders.append("part-leftover")
            _commit_split(self.root / split, folders)
        return Written(rows, sum(part.hash_sum for part in parts) % 2**64)

    def _write_blocks(self, folder: Path, rows: pa.Table) -> None:
        # Not with its parents: a task that outlives an interrupted preparation must not bring back the folder it removed.
        try:
            folder.mkdir()
        except FileNotFoundError as error:
            where = f"{self.root} is not there on {socket.gethostname()}"
            raise FileNotFoundError(f"{where}: --out must be on a file system that all nodes share") from error
        with BlockWriter(
            out=str(folder), columns=self.columns, compression=COMPRESSION, hashes=["xxh64"], size_limit=SHARD_BYTES
        ) as writer:
            for block in cut(unpacked(rows, self.columns), self.block_rows):
                writer.write(block)


def rows_per_part(rows: int, size: int) -> int:
    """For rows of `size` bytes together."""
    return max(MIN_ROWS_PER_PART, rows * PART_BYTES // max(size, 1))


def _commit_split(root: Path, folders: list[str]) -> None:
    for stray in root.glob("part-*"):
        if stray.name not in folders:
            remove_folder(stray)
    if not folders:
        remove_folder(root)
    else:
        # merge_index warns of the temporary folder it uses and of the target folder being there, as it must be.
        logging.disable(logging.WARNING)
        merge_index([str(root / folder / "index.json") for folder in folders], str(root))
        logging.disable(logging.NOTSET)
