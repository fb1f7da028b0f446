"""A finished run -> its vector index: embed every item, write, measure recall, publish. Run it by jobs/build_index.py."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from recsys_ray.data.dataset_directory import DatasetDirectory
from recsys_ray.data.split_reader import read_split
from recsys_ray.serving.bundle import Retriever, load_retriever
from recsys_ray.serving.index import RECALL_QUERIES, IndexWriter, Manifest
from recsys_ray.serving.item_vectors import item_vectors


def build_index(run_dir: Path, uri: str) -> Manifest:
    """Replaces the index at `uri` in one step; whatever goes wrong, what is served there stays.

    Raises FileNotFoundError where `run_dir` is no finished Two Tower run.
    """
    retriever = load_retriever(run_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    key = dataset.schema.key("item")
    assert key is not None
    with IndexWriter.begin(uri, retriever.version, key.name) as writer:
        started = time.perf_counter()
        index = writer.write(*item_vectors(run_dir, dataset, retriever.dim))
        print(f"index: {index.manifest.items:,} items embedded and indexed in {time.perf_counter() - started:.1f} s", flush=True)
        return writer.publish(index, sample_queries(retriever, dataset))


def sample_queries(retriever: Retriever, dataset: DatasetDirectory) -> np.ndarray:
    """Query vectors [RECALL_QUERIES at most, dim] of the last split's first rows, which are in an order of chance."""
    split = next(name for name in ("test", "validation", "train") if dataset.split(name))
    parts: list[np.ndarray] = []
    for columns in read_split(dataset, split):
        parts.append(retriever.embed_encoded_queries(columns))
        if sum(map(len, parts)) >= RECALL_QUERIES:
            break
    return np.concatenate(parts)[:RECALL_QUERIES]
