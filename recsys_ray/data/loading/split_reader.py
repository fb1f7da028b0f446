"""Reads the blocks of a split in one process, to look at a dataset without a process group or shuffling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from recsys_ray.compat.streaming_compat import StreamingDataset, own_shared_memory_names, patch_shared_memory
from recsys_ray.data.blocks.layout import widened
from recsys_ray.data.dataset.directory import DatasetDirectory


def read_split(dataset: DatasetDirectory, split: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the columns of one block at a time, as a BlockStream would. Yields nothing for a split without rows.

    Shards are unpacked in a temporary folder, which is removed at the end.
    """
    folder = dataset.split(split)
    if folder is None:
        return
    with tempfile.TemporaryDirectory() as cache:
        blocks = _open(str(folder), cache)
        for number in range(len(blocks)):
            yield {name: torch.from_numpy(np.array(values)) for name, values in widened(blocks[number]).items()}


def column_ranges(dataset: DatasetDirectory, positions: list[str]) -> list[str]:
    """Returns a table, as lines, of what each column holds in some row blocks, each given as `train/<shard file>:<number>`."""
    split = positions[0].split("/", 1)[0]
    lines = [f"{'column':<24}{'values':>10}{'least':>16}{'mean':>16}{'greatest':>16}{'not finite':>12}"]
    with tempfile.TemporaryDirectory() as cache:
        blocks = _open(str(dataset.split(split)), cache)
        starts = {shard.file_pairs[0][0].basename: first for shard, first in zip(blocks.shards, _firsts(blocks), strict=True)}
        wanted = [position.split("/", 1)[1].rsplit(":", 1) for position in positions]
        found = [blocks[starts[shard] + int(number)] for shard, number in wanted]
    for name in found[0]:
        values = np.concatenate([block[name] for block in found]).astype(np.float64)
        finite = values[np.isfinite(values)]
        least, mean, most = (finite.min(), finite.mean(), finite.max()) if len(finite) else (np.nan,) * 3
        lines.append(f"{name:<24}{len(values):>10,}{least:>16.6g}{mean:>16.6g}{most:>16.6g}{len(values) - len(finite):>12,}")
    return lines


def _open(folder: str, cache: str) -> StreamingDataset:
    patch_shared_memory()
    with own_shared_memory_names():
        return StreamingDataset(remote=folder, local=cache, batch_size=1)


def _firsts(blocks: StreamingDataset) -> np.ndarray:
    """The number of each shard's first block."""
    counts = np.array([shard.samples for shard in blocks.shards])
    return np.cumsum(counts) - counts
