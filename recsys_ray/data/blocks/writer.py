"""A shard writer for row blocks: the same bytes as Mosaic Streaming's MDSWriter, encoded a hundred times as fast.

MDSWriter encodes a sample column by column in Python, 4 microseconds per row of 40 columns. All columns of a row block are
one-dimensional arrays, so its sample is their sizes, then a short header and the bytes of each array.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from recsys_ray.compat.streaming_compat import MDSWriter, NDArray
from recsys_ray.data.blocks.layout import Block

COUNT = np.dtype(np.uint32)
"""The type of the numbers of samples, offsets and sizes in an MDS file."""


class BlockWriter(MDSWriter):
    """An MDSWriter whose columns all have one-dimensional `ndarray:` encodings with a type and no shape."""

    def encode_sample(self, sample: Block) -> bytes:
        """Encodes a row block as an MDS sample."""
        arrays = [np.ascontiguousarray(sample[name]) for name in self.column_names]
        headers = [_header(len(values)) for values in arrays]
        sizes = [len(header) + values.nbytes for header, values in zip(headers, arrays, strict=True)]
        parts: list[Any] = [part for pair in zip(headers, arrays, strict=True) for part in pair]
        return b"".join([np.array(sizes, COUNT).tobytes(), *parts])

    def encode_joint_shard(self) -> bytes:
        """Encodes the collected samples as an MDS file, with one copy of their bytes where MDSWriter makes three."""
        offsets = np.cumsum([0, *map(len, self.new_samples)])
        offsets += COUNT.itemsize * (1 + len(offsets)) + len(self.config_data)
        head = [COUNT.type(len(self.new_samples)).tobytes(), offsets.astype(COUNT).tobytes(), self.config_data]
        return b"".join([*head, *self.new_samples])


@cache
def _header(length: int) -> bytes:
    """Returns what an encoded array of this length begins with: its number of dimensions and their size."""
    return NDArray("uint8").encode(np.zeros(length, np.uint8))[:-length]
