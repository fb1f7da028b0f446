"""The blocks of a split in one process: for looking at a dataset, without a process group or shuffling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from recsys_ray.compat.streaming_compat import StreamingDataset
from recsys_ray.data.blocks.layout import widened
from recsys_ray.data.dataset.directory import DatasetDirectory


def read_split(dataset: DatasetDirectory, split: str) -> Iterator[dict[str, torch.Tensor]]:
    """Columns as a stream yields them, a block at a time. Shards are unpacked in a temporary folder, removed at the end."""
    folder = dataset.split(split)
    if folder is None:
        return
    with tempfile.TemporaryDirectory() as cache:
        blocks = StreamingDataset(remote=str(folder), local=cache, batch_size=1)
        for number in range(len(blocks)):
            yield {name: torch.from_numpy(np.array(values)) for name, values in widened(blocks[number]).items()}


def column_ranges(dataset: DatasetDirectory, places: list[str]) -> list[str]:
    """What the columns of some row blocks, each as `train/<shard file>:<number>`, hold: a line for each column."""
    split = places[0].split("/", 1)[0]
    shown = [f"{'column':<24}{'values':>10}{'least':>16}{'mean':>16}{'greatest':>16}{'not finite':>12}"]
    with tempfile.TemporaryDirectory() as cache:
        blocks = StreamingDataset(remote=str(dataset.split(split)), local=cache, batch_size=1)
        starts = {shard.file_pairs[0][0].basename: first for shard, first in zip(blocks.shards, _firsts(blocks), strict=True)}
        wanted = [place.split("/", 1)[1].rsplit(":", 1) for place in places]
        found = [blocks[starts[shard] + int(number)] for shard, number in wanted]
    for name in found[0]:
        values = np.concatenate([block[name] for block in found]).astype(np.float64)
        fine = values[np.isfinite(values)]
        least, mean, most = (fine.min(), fine.mean(), fine.max()) if len(fine) else (np.nan,) * 3
        shown.append(f"{name:<24}{len(values):>10,}{least:>16.6g}{mean:>16.6g}{most:>16.6g}{len(values) - len(fine):>12,}")
    return shown


def _firsts(blocks: StreamingDataset) -> np.ndarray:
    """The number of each shard's first block."""
    counts = np.array([shard.samples for shard in blocks.shards])
    return np.cumsum(counts) - counts
