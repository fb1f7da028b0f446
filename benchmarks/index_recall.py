"""Measures both vector indexes at their default settings on a million vectors: recall, and queries per second on one thread.

    python benchmarks/index_recall.py [--vectors 1000000] [--dim 64] [--hnsw]        # needs pip install 'recsys-ray[benchmarks]'

LanceDB and `faiss:` are built, calibrated and searched through this package's own `write_index`, `open_index` and `search`, which
is asked for item keys and scores: one query a call, and BULK queries a call. Recall@100 against exact search is measured on
queries that no index was calibrated on. The two take turns for some rounds, and the fastest round of each counts, so that a busy
machine slows both alike.

--hnsw adds plain faiss HNSW with the smallest efSearch that reaches the recall of `faiss:`; building it takes many minutes. It
searches by distance, because by inner product its graph stays below that recall (0.974 at efSearch 4000): an extra dimension
makes all vectors equally long, so that the nearest have the largest inner product (Bachrach et al. 2014).

The vectors are the output of a random two-layer network on 16 latent numbers, plus noise: like those of a trained tower they have
fewer directions than dimensions.
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

import numpy as np
import pyarrow as pa
import tyro

from recsys_ray.serving.index import VectorIndex, open_index
from recsys_ray.serving.index.faiss.vectors import faiss
from recsys_ray.serving.index.recall import mean_recall
from recsys_ray.serving.index.vector_index import VECTOR, IndexSource, index_backend

K, LATENT, HIDDEN = 100, 16, 128
BULK, SINGLE = 512, 200
"""Queries in one call, and queries that are timed one a call."""
CONNECTIONS, EF_CONSTRUCTION, EF_SEARCH = 32, 200, (100, 150, 200, 300, 400, 600, 800, 1200, 2000, 4000)
CHUNK = 100_000
RECALL_TARGET = 0.99
Found = list[set[int]]
Search = Callable[[np.ndarray], Found]


@dataclass(frozen=True)
class Arguments:
    """The flags of this benchmark."""

    vectors: int = 1_000_000
    dim: int = 64
    rounds: int = 5
    hnsw: bool = False
    work: Path = Path("runs/index-recall")


@dataclass
class Measured:
    """The figures of one index."""

    build_seconds: float
    setting: str
    recall: float = 0.0
    one_a_call: float = 0.0
    """Queries per second."""
    bulk: float = 0.0
    """Queries per second."""

    def round(self, search: Search, queries: np.ndarray, exact: Found) -> None:
        """Times both ways of asking once, and keeps the better speeds."""
        search(queries[:20])
        started = time.perf_counter()
        for query in queries[:SINGLE]:
            search(query[None])
        self.one_a_call = max(self.one_a_call, SINGLE / (time.perf_counter() - started))
        started = time.perf_counter()
        found = search(queries)
        self.bulk = max(self.bulk, len(queries) / (time.perf_counter() - started))
        self.recall = mean_recall(found, exact)


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


def built(uri: str, vectors: np.ndarray) -> tuple[VectorIndex, Measured]:
    """Builds an index on all cores, and opens it."""
    schema = pa.schema([("item", pa.int64()), (VECTOR, pa.list_(pa.float32(), vectors.shape[1]))])
    queries = partial(draw, dim=vectors.shape[1], seed=1)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    line = index_backend(uri).write_index(uri, IndexSource("benchmark", "item", schema, batches(vectors, schema), queries))
    seconds = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    return open_index(uri, "benchmark"), Measured(seconds, line.split(", ")[-1].split(";")[0])


def index_search(index: VectorIndex) -> Search:
    return lambda queries: [set(found["item"].to_numpy().tolist()) for found in index.search(queries, K, columns=[])]


def built_graph(vectors: np.ndarray) -> tuple[Any, Measured]:
    """Builds a faiss HNSW graph on all cores."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    norms = (vectors**2).sum(axis=1)
    vectors = np.column_stack([vectors, np.sqrt(norms.max() - norms)])
    graph = faiss.IndexHNSWFlat(vectors.shape[1], CONNECTIONS)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    started = time.perf_counter()
    for first in range(0, len(vectors), CHUNK):
        graph.add(vectors[first : first + CHUNK])
        print(f"HNSW: {first + CHUNK:,} vectors in {time.perf_counter() - started:.0f} s", flush=True)
    faiss.omp_set_num_threads(1)
    return graph, Measured(time.perf_counter() - started, "")


def reach(graph: Any, recall: float, queries: np.ndarray, exact: Found) -> str:
    """Sets the smallest efSearch that reaches `recall`, or else the largest, and says which."""
    for ef in EF_SEARCH:
        graph.hnsw.efSearch = ef
        if mean_recall(graph_search(graph)(queries), exact) >= recall:
            break
    return f"efSearch {graph.hnsw.efSearch}"


def graph_search(graph: Any) -> Search:
    def search(queries: np.ndarray) -> Found:
        return [set(row.tolist()) for row in graph.search(np.pad(queries, ((0, 0), (0, 1))), K)[1]]

    return search


def drawn(arguments: Arguments) -> tuple[np.ndarray, np.ndarray, Found]:
    """Returns vectors, queries, and what exact search finds. Raises ValueError unless the vectors are a multiple of CHUNK."""
    if arguments.vectors < CHUNK or arguments.vectors % CHUNK:
        raise ValueError(f"--vectors {arguments.vectors} is not a multiple of {CHUNK}")
    vectors = np.concatenate([draw(CHUNK, arguments.dim, seed) for seed in range(10, 10 + arguments.vectors // CHUNK)])
    queries = draw(BULK, arguments.dim, seed=2)
    best = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return vectors, queries, [set(row.tolist()) for row in best]


def measured(arguments: Arguments) -> dict[str, Measured]:
    """Builds the indexes one after another, and searches them in turns."""
    vectors, queries, exact = drawn(arguments)
    shutil.rmtree(arguments.work, ignore_errors=True)
    lance, ours_lance = built(str(arguments.work / "lance"), vectors)
    lists, ours_faiss = built(f"faiss:{arguments.work / 'faiss'}", vectors)
    turns = {"LanceDB": (index_search(lance), ours_lance), "faiss:": (index_search(lists), ours_faiss)}
    if arguments.hnsw:
        graph, plain = built_graph(vectors)
        plain.setting = reach(graph, mean_recall(index_search(lists)(queries), exact), queries, exact)
        turns["faiss HNSW, plain"] = graph_search(graph), plain
    for _ in range(arguments.rounds):
        for search, figures in turns.values():
            figures.round(search, queries, exact)
    return {name: figures for name, (_, figures) in turns.items()}


def main(arguments: Arguments) -> None:
    rows = measured(arguments)
    print(f"\n{arguments.vectors:,} vectors of {arguments.dim} numbers; one thread searches, all cores build")
    print(f"{'':<20}{'recall@100':>12}{'queries/s':>12}{f'{BULK} a call':>12}{'build s':>10}   setting")
    for name, row in rows.items():
        speeds = f"{row.one_a_call:>12,.0f}{row.bulk:>12,.0f}{row.build_seconds:>10.0f}"
        print(f"{name:<20}{row.recall:>12.4f}{speeds}   {row.setting}")
    lance, lists = rows["LanceDB"], rows["faiss:"]
    single, bulk = lists.one_a_call / lance.one_a_call, lists.bulk / lance.bulk
    reached = min(lance.recall, lists.recall) >= RECALL_TARGET
    print(f"faiss: over LanceDB: {single:.1f} times the queries per second, {bulk:.1f} times with {BULK} a call; wanted: 4")
    print(f"both at recall {RECALL_TARGET} or better: {'yes' if reached else 'no'}")
    summary = {"benchmark": "index_recall", "vectors": arguments.vectors, "dim": arguments.dim}
    ratios = {"faiss_over_lance": single, "faiss_over_lance_bulk": bulk, "recall_reached": reached}
    print(json.dumps({**summary, **ratios, "rows": {name: vars(row) for name, row in rows.items()}}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
