"""The blocks of a split, one after another, in one process: for looking at a dataset, without a process group or shuffling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from recsys_ray.data.dataset_directory import DatasetDirectory
from recsys_ray.data.mosaic import StreamingDataset


def read_split(dataset: DatasetDirectory, split: str) -> Iterator[dict[str, torch.Tensor]]:
    """Columns as a stream yields them, a block at a time. Shards are unpacked in a temporary folder, removed at the end."""
    folder = dataset.split(split)
    if folder is None:
        return
    with tempfile.TemporaryDirectory() as cache:
        blocks = StreamingDataset(remote=str(folder), local=cache, batch_size=1)
        for number in range(len(blocks)):
            yield {name: torch.from_numpy(np.array(values)) for name, values in blocks[number].items()}
