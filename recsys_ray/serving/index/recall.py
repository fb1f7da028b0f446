"""Recall of approximate search: the share of what exact search finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys_ray.serving.index.vector_index import VectorIndex

RECALL_AT = 100
"""How many items of a query are compared."""


def nearest_keys(index: VectorIndex, queries: np.ndarray) -> list[set[Any]]:
    """Returns for each query the keys of its RECALL_AT best items."""
    return [set(found.column(0).to_pylist()) for found in index.search(queries, RECALL_AT, columns=[])]


def mean_recall(found: list[set[Any]], exact: list[set[Any]]) -> float:
    """Returns the share of `exact` that is in `found`, averaged over the queries."""
    return float(np.mean([len(some & best) / len(best) for some, best in zip(found, exact, strict=True)]))
