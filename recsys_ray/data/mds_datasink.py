"""Ray Data -> MDS row blocks, in parallel, with each row in exactly one block.

Every attempt of a write task writes into a folder of its own, and only the folders of attempts that succeeded are kept, so a
retried task leaves no duplicate. The rows that do not fill a block travel back with the task's result, and the driver packs
them: every block of a split is full but its last. `index.json` of each split is merged and written last.
"""

from __future__ import annotations

import logging
import shutil
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Datasink
from ray.data._internal.execution.interfaces import TaskContext
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import WriteResult

from recsys_ray.data.blocks import to_block
from recsys_ray.data.mosaic import MDSWriter, merge_index
from recsys_ray.data.splits import SPLITS

SPLIT_COLUMN = "__split__"
COMPRESSION = "zstd:3"
SHARD_BYTES = 1 << 26


@dataclass
class PartWritten:
    """What one write task reports: its folder, rows by split, and the rows too few to fill a block."""

    folder: str
    rows: dict[str, int] = field(default_factory=dict)
    leftover: dict[str, pa.Table] = field(default_factory=dict)


class MDSDatasink(Datasink[PartWritten]):
    """Writes tables with a SPLIT_COLUMN into `root`/train, validation and test. `rows` holds the count of each at the end."""

    def __init__(self, root: Path, columns: dict[str, str], block_rows: int, min_rows_per_part: int = 1 << 16) -> None:
        self.root, self.columns, self.block_rows = root, columns, block_rows
        self._min_rows_per_part = min_rows_per_part
        self.rows = dict.fromkeys(SPLITS, 0)

    @property
    def min_rows_per_write(self) -> int:
        return self._min_rows_per_part

    def write(self, blocks: Iterable[RayBlock], ctx: TaskContext) -> PartWritten:
        table = pa.concat_tables([BlockAccessor.for_block(block).to_arrow() for block in blocks])
        part = PartWritten(f"part-{ctx.task_idx:05d}-{uuid.uuid4().hex[:8]}")
        for index, split in enumerate(SPLITS):
            rows = table.filter(pc.equal(table[SPLIT_COLUMN], index)).drop_columns([SPLIT_COLUMN])
            whole = rows.num_rows - rows.num_rows % self.block_rows
            if whole:
                self._write_blocks(self.root / split / part.folder, rows.slice(0, whole))
            part.rows[split], part.leftover[split] = whole, rows.slice(whole)
        return part

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        for split in SPLITS:
            (self.root / split).mkdir()

    def _write_blocks(self, folder: Path, rows: pa.Table) -> None:
        # Not with its parents: a task that outlives an interrupted preparation must not bring back the folder it removed.
        try:
            folder.mkdir()
        except FileNotFoundError as error:
            where = f"{self.root} is not there on {socket.gethostname()}"
            raise FileNotFoundError(f"{where}: --out must be on a file system that all nodes share") from error
        rows = rows.combine_chunks()
        with MDSWriter(
            out=str(folder), columns=self.columns, compression=COMPRESSION, hashes=["xxh64"], size_limit=SHARD_BYTES
        ) as writer:
            for start in range(0, rows.num_rows, self.block_rows):
                writer.write(to_block(rows.slice(start, self.block_rows)))

    def on_write_complete(self, write_result: WriteResult[PartWritten]) -> None:
        parts = sorted(write_result.write_returns, key=lambda part: part.folder)
        for split in SPLITS:
            folders = [part.folder for part in parts if part.rows[split]]
            leftover = pa.concat_tables([part.leftover[split] for part in parts])
            self.rows[split] = sum(part.rows[split] for part in parts) + leftover.num_rows
            if leftover.num_rows:
                order = np.random.default_rng(0).permutation(leftover.num_rows)
                self._write_blocks(self.root / split / "part-leftover", leftover.take(order))
                folders.append("part-leftover")
            self._commit(self.root / split, folders)

    def _commit(self, root: Path, folders: list[str]) -> None:
        for stray in root.glob("part-*"):
            if stray.name not in folders:
                shutil.rmtree(stray)
        if not folders:
            shutil.rmtree(root)
        else:
            # merge_index warns of the temporary folder it uses and of the target folder being there, as it must be.
            logging.disable(logging.WARNING)
            merge_index([str(root / folder / "index.json") for folder in folders], str(root))
            logging.disable(logging.NOTSET)
