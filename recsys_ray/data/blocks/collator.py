"""The step from encoded row blocks to the columns of a batch: all columns are copied out at once, without decoding each block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from recsys_ray.columns import LENGTHS
from recsys_ray.compat.streaming_compat import Reader
from recsys_ray.data.blocks.layout import Block, stored_type, widened
from recsys_ray.data.blocks.reader import BlockReader, EncodedBlock


class ColumnBounds(NamedTuple):
    """The first byte of the values of each column in an EncodedBlock, and the byte after its last."""

    starts: list[int]
    stops: list[int]


@dataclass(frozen=True)
class BlockCollator:
    """A collate_fn for DataLoader that concatenates encoded blocks into the columns of a batch, with ids as int32."""

    names: list[str]
    types: list[np.dtype]
    block_rows: int

    @classmethod
    def of(cls, shard: Reader, block_rows: int) -> Self:
        """Returns the collator for blocks with the columns of `shard`, a BlockReader."""
        assert isinstance(shard, BlockReader)
        types = [stored_type(encoding) for encoding in shard.column_encodings]
        return cls(shard.column_names, types, block_rows)

    def __call__(self, blocks: list[EncodedBlock]) -> tuple[Block, np.ndarray]:
        """Returns the columns of the batch, and the number of rows that each block has.

        Short blocks are padded with zeros to `block_rows` rows; a multi-valued column gets lengths of 0, hence no values.
        """
        sizes = np.stack([block[: 4 * len(self.names)] for block in blocks]).view(np.uint32)
        starts, stops = self._bounds(blocks[0], sizes[0])
        single = next(index for index, name in enumerate(self.names) if name not in self._multi)
        rows = (stops[single] - starts[single]) // self.types[single].itemsize
        if rows == self.block_rows and (sizes == sizes[0]).all():
            together = np.stack(blocks)
            columns = [np.ascontiguousarray(together[:, start:stop]) for start, stop in zip(starts, stops, strict=True)]
            return self._typed(columns), np.full(len(blocks), rows)
        return self._one_by_one(blocks, sizes, single)

    def _one_by_one(self, blocks: list[EncodedBlock], sizes: np.ndarray, single: int) -> tuple[Block, np.ndarray]:
        """Concatenates blocks whose columns differ in size; `single` is the index of a single-valued column."""
        bounds = [self._bounds(block, size) for block, size in zip(blocks, sizes, strict=True)]
        rows = [(stops[single] - starts[single]) // self.types[single].itemsize for starts, stops in bounds]
        columns = []
        for index, (name, kind) in enumerate(zip(self.names, self.types, strict=True)):
            parts = [block[starts[index] : stops[index]] for block, (starts, stops) in zip(blocks, bounds, strict=True)]
            if name not in self._multi and min(rows) < self.block_rows:
                padding = [np.zeros((self.block_rows - count) * kind.itemsize, np.uint8) for count in rows]
                parts = [piece for pair in zip(parts, padding, strict=True) for piece in pair]
            columns.append(np.concatenate(parts))
        return self._typed(columns), np.array(rows)

    @cached_property
    def _multi(self) -> set[str]:
        return {name.removesuffix(LENGTHS) for name in self.names if name.endswith(LENGTHS)}

    def _bounds(self, block: EncodedBlock, sizes: np.ndarray) -> ColumnBounds:
        stops = np.cumsum(sizes, dtype=np.int64) + sizes.nbytes
        starts = stops - sizes
        headers = 1 + (1 << (block[starts] & 3).astype(np.int64))
        return ColumnBounds((starts + headers).tolist(), stops.tolist())

    def _typed(self, columns: list[np.ndarray]) -> Block:
        return widened(
            {name: values.ravel().view(kind) for name, kind, values in zip(self.names, self.types, columns, strict=True)}
        )
