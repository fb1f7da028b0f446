"""Building the vector index of a finished run: embed every item, then hand the vectors to the backend that the URI asks for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.serving.bundle import Retriever, load_retriever
from recsys_ray.serving.index.item_vectors import item_vectors
from recsys_ray.serving.index.vector_index import IndexSource, index_backend


def build_index(run_dir: Path, uri: str) -> str:
    """Replaces the index at `uri`: a folder, an object store's URL, faiss:folder or databricks:endpoint/name.

    Returns a line about the result. Raises FileNotFoundError where `run_dir` is not a finished Two Tower run, and LockHeldError
    while another build of this index runs.
    """
    retriever = load_retriever(run_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    schema, batches = item_vectors(run_dir, dataset, retriever.dim)
    queries = partial(sample_queries, retriever, dataset)
    return index_backend(uri).write_index(uri, IndexSource(retriever.version, retriever.item_key, schema, batches, queries))


def sample_queries(retriever: Retriever, dataset: DatasetDirectory, limit: int) -> np.ndarray:
    """Returns the query vectors, float32 [at most `limit`, dim], of the first rows of the last split, which are shuffled."""
    split = next(name for name in ("test", "validation", "train") if dataset.split(name))
    parts: list[np.ndarray] = []
    for columns in read_split(dataset, split):
        parts.append(retriever.embed_encoded_queries(columns))
        if sum(map(len, parts)) >= limit:
            break
    return np.concatenate(parts)[:limit]
