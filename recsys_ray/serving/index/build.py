"""A finished run -> its vector index: embed every item, write, measure recall, publish. Run it by jobs/build_index.py."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.serving.bundle import Retriever, load_retriever
from recsys_ray.serving.index.databricks import SCHEME, DatabricksIndex, connect, open_databricks_index, write_databricks_index
from recsys_ray.serving.index.item_vectors import item_vectors
from recsys_ray.serving.index.lance import RECALL_AT, RECALL_QUERIES, Index, IndexWriter, Manifest, open_index


def build_index(run_dir: Path, uri: str) -> str:
    """Replaces the index at `uri`: a folder, a store's URL, or databricks:endpoint/name. Returns what it came to, in words.

    Raises FileNotFoundError where `run_dir` is no finished Two Tower run.
    """
    retriever = load_retriever(run_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    if uri.startswith(SCHEME):
        vectors = item_vectors(run_dir, dataset, retriever.dim)
        items = write_databricks_index(connect(), uri, retriever.version, retriever.item_key, *vectors)
        return f"{items:,} items of {retriever.dim} numbers, model {retriever.version}"
    manifest = build_lance_index(run_dir, uri, retriever, dataset)
    how = f"{manifest.probes} lists a search" if manifest.probes else "searched exactly"
    recall = f"recall@{RECALL_AT} {manifest.recall:.4f} against exact search ({manifest.recall_queries} queries)"
    return f"{manifest.items:,} items of {manifest.dim} numbers, {how}; {recall}"


def build_lance_index(run_dir: Path, uri: str, retriever: Retriever, dataset: DatasetDirectory) -> Manifest:
    """In one step; whatever goes wrong, what is served at `uri` stays."""
    vectors = item_vectors(run_dir, dataset, retriever.dim)
    with IndexWriter.begin(uri, retriever.version, retriever.item_key) as writer:
        started = time.perf_counter()
        index = writer.write(*vectors)
        print(f"index: {index.manifest.items:,} items embedded and indexed in {time.perf_counter() - started:.1f} s", flush=True)
        return writer.publish(index, sample_queries(retriever, dataset))


def open_any_index(uri: str, retriever: Retriever, columns: list[str]) -> Index | DatabricksIndex:
    """As `build_index` made it. Raises ValueError where another model did, FileNotFoundError where nobody did."""
    if uri.startswith(SCHEME):
        return open_databricks_index(connect(), uri, retriever.version, retriever.item_key, columns)
    return open_index(uri, retriever.version)


def sample_queries(retriever: Retriever, dataset: DatasetDirectory) -> np.ndarray:
    """Query vectors [RECALL_QUERIES at most, dim] of the last split's first rows, which are in an order of chance."""
    split = next(name for name in ("test", "validation", "train") if dataset.split(name))
    parts: list[np.ndarray] = []
    for columns in read_split(dataset, split):
        parts.append(retriever.embed_encoded_queries(columns))
        if sum(map(len, parts)) >= RECALL_QUERIES:
            break
    return np.concatenate(parts)[:RECALL_QUERIES]
