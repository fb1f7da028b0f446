"""Compares the vector index with faiss's HNSW graph at the same recall (or the graph's best), one query at a time on one thread.

    python -m benchmarks.speed.retrieval            # half a minute

benchmarks/index_recall.py does this with a million vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import tyro

from benchmarks.index_recall import Arguments, built, built_graph, drawn, graph_search, index_search, reaching, timed
from benchmarks.speed.side_by_side import DATA, Goal, in_turn, report

OURS, GRAPH = "this index", "faiss HNSW"
UNIT = "queries"


@dataclass(frozen=True)
class Retrieval:
    vectors: int = 100_000
    dim: int = 64
    repeats: int = 3


def main(job: Retrieval) -> None:
    vectors, queries, exact = drawn(Arguments(job.vectors, job.dim))
    index, _ = built(DATA / "index", vectors)
    graph, _ = built_graph(vectors)
    recall, _ = timed(index_search(index), queries, exact)
    graph_recall, _ = reaching(graph, recall, queries, exact)
    searches = {OURS: index_search(index), GRAPH: graph_search(graph)}
    rates = in_turn({name: partial(speed, search, queries, exact) for name, search in searches.items()}, job.repeats, UNIT)
    facts = {"vectors": len(vectors), "dim": job.dim, "recall": {OURS: recall, GRAPH: graph_recall}}
    report("retrieval", rates, [Goal(OURS, GRAPH)], facts, UNIT)


def speed(search: Callable[[np.ndarray], set[int]], queries: np.ndarray, exact: list[set[int]]) -> float:
    return timed(search, queries, exact)[1]


if __name__ == "__main__":
    main(tyro.cli(Retrieval, description=__doc__))
