"""Measures the vector index at its default settings on a million vectors: recall, and queries per second compared with faiss.

    python benchmarks/index_recall.py [--vectors 1000000] [--dim 64]        # needs pip install 'recsys-ray[benchmarks]'

Recall@100 against exact search is measured on queries that the index was not calibrated on, one at a time, on one thread. faiss
HNSW runs with the smallest efSearch that reaches the same recall. It searches by distance, because by inner product its graph
stays below that recall (0.974 at efSearch 4000): an extra dimension makes all vectors equally long, so that the nearest have the
largest inner product (Bachrach et al. 2014). The vectors are the output of a random two-layer network on 16 latent numbers, plus
noise: like those of a trained tower they have fewer directions than dimensions.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["LANCE_CPU_THREADS"] = "1"  # Lance reads it when it is loaded.

import faiss
import numpy as np
import pyarrow as pa
import tyro

from recsys_ray.serving.index.lance import LanceIndex, open_index, write_index
from recsys_ray.serving.index.recall import mean_recall
from recsys_ray.serving.index.vector_index import VECTOR, IndexSource

K, LATENT, HIDDEN = 100, 16, 128
CONNECTIONS, EF_CONSTRUCTION, EF_SEARCH = 32, 200, (100, 150, 200, 300, 400, 600, 800, 1200, 2000, 4000)
CHUNK = 100_000


@dataclass(frozen=True)
class Arguments:
    """The flags of this benchmark."""

    vectors: int = 1_000_000
    dim: int = 64
    queries: int = 500
    work: Path = Path("runs/index-recall")


def draw(rows: int, dim: int, seed: int) -> np.ndarray:
    """Returns random vectors, float32 [rows, dim]."""
    network, random = np.random.default_rng(0), np.random.default_rng(seed)
    first = network.standard_normal((LATENT, HIDDEN), np.float32) / LATENT**0.5
    second = network.standard_normal((HIDDEN, dim), np.float32) / HIDDEN**0.5
    latent, noise = random.standard_normal((rows, LATENT), np.float32), random.standard_normal((rows, dim), np.float32)
    return np.tanh(latent @ first) @ second + np.float32(0.1) * noise


def batches(vectors: np.ndarray, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(vectors), CHUNK):
        part = vectors[first : first + CHUNK]
        column = pa.FixedSizeListArray.from_arrays(part.reshape(-1), part.shape[1])
        yield pa.record_batch([pa.array(np.arange(first, first + len(part))), column], schema=schema)


def built(work: Path, vectors: np.ndarray) -> tuple[LanceIndex, float]:
    """Returns an index of the vectors, and the seconds that building it took."""
    shutil.rmtree(work, ignore_errors=True)
    schema = pa.schema([("item", pa.int64()), (VECTOR, pa.list_(pa.float32(), vectors.shape[1]))])
    started = time.perf_counter()
    queries = partial(draw, dim=vectors.shape[1], seed=1)
    write_index(str(work), IndexSource("benchmark", "item", schema, batches(vectors, schema), queries))
    return open_index(str(work), "benchmark"), time.perf_counter() - started


def timed(search: Callable[[np.ndarray], set[int]], queries: np.ndarray, exact: list[set[int]]) -> tuple[float, float]:
    """Returns recall and queries per second of one search function."""
    for query in queries[:20]:
        search(query)
    started = time.perf_counter()
    found = [search(query) for query in queries]
    return mean_recall(found, exact), len(queries) / (time.perf_counter() - started)


def built_graph(vectors: np.ndarray) -> tuple[Any, float]:
    """Returns a faiss HNSW graph of the vectors, and the seconds that building it took on all cores."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    norms = (vectors**2).sum(axis=1)
    vectors = np.column_stack([vectors, np.sqrt(norms.max() - norms)])
    graph = faiss.IndexHNSWFlat(vectors.shape[1], CONNECTIONS)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    started = time.perf_counter()
    for first in range(0, len(vectors), CHUNK):
        graph.add(vectors[first : first + CHUNK])
    faiss.omp_set_num_threads(1)
    return graph, time.perf_counter() - started


def reaching(graph: Any, recall: float, queries: np.ndarray, exact: list[set[int]]) -> tuple[float, float]:
    """Sets the smallest efSearch that reaches `recall`, or else the largest. Returns recall and queries per second with it."""
    for ef in EF_SEARCH:
        graph.hnsw.efSearch = ef
        found, speed = timed(graph_search(graph), queries, exact)
        if found >= recall:
            break
    return found, speed


def index_search(index: LanceIndex) -> Callable[[np.ndarray], set[int]]:
    return lambda query: set(index.search(query[None], K, columns=[])[0]["item"].to_pylist())


def graph_search(graph: Any) -> Callable[[np.ndarray], set[int]]:
    return lambda query: set(graph.search(np.append(query, np.float32(0))[None], K)[1][0].tolist())


def drawn(arguments: Arguments) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """Returns vectors, queries, and what exact search finds. Raises ValueError unless the vectors are a multiple of CHUNK."""
    if arguments.vectors < CHUNK or arguments.vectors % CHUNK:
        raise ValueError(f"--vectors {arguments.vectors} is not a multiple of {CHUNK}")
    vectors = np.concatenate([draw(CHUNK, arguments.dim, seed) for seed in range(10, 10 + arguments.vectors // CHUNK)])
    queries = draw(arguments.queries, arguments.dim, seed=2)
    return vectors, queries, [set(np.argpartition(-scores, K)[:K].tolist()) for scores in (vectors @ query for query in queries)]


def main(arguments: Arguments) -> None:
    vectors, queries, exact = drawn(arguments)
    index, seconds = built(arguments.work, vectors)
    recall, speed = timed(index_search(index), queries, exact)
    graph, graph_seconds = built_graph(vectors)
    graph_recall, graph_speed = reaching(graph, recall, queries, exact)
    rows = {
        f"this index, {index.manifest.probes} lists": (recall, speed, seconds),
        f"faiss HNSW, efSearch {graph.hnsw.efSearch}": (graph_recall, graph_speed, graph_seconds),
    }
    print(f"\n{len(vectors):,} vectors of {arguments.dim} numbers; one thread searches, all cores build")
    print(f"{'':<28}{'recall@100':>12}{'queries/s':>12}{'build s':>10}")
    for name, (found, per_second, build) in rows.items():
        print(f"{name:<28}{found:>12.4f}{per_second:>12,.0f}{build:>10.0f}")
    print(f"queries per second, ours over faiss: {speed / graph_speed:.2f}")
    names = ("recall", "queries_per_second", "build_seconds")
    found = {name: dict(zip(names, row, strict=True)) for name, row in rows.items()}
    print(json.dumps({"benchmark": "index_recall", "vectors": len(vectors), "dim": arguments.dim, "rows": found}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
