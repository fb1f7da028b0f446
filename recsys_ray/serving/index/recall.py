"""Recall of approximate search, the share of what exact search finds, and the settings that reach the recall that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from recsys_ray.serving.index.vector_index import VectorIndex

RECALL_AT = 100
"""How many items of a query are compared."""
RECALL_WANTED = 0.995
RECALL_QUERIES = 200
EXACT_BELOW = 50_000
"""Catalogues of fewer items are searched exactly, which takes a millisecond or two."""
VECTORS_PER_LIST = 1000
"""The average length of an inverted list."""
PROBED_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""The shares of the inverted lists that calibration tries."""
T = TypeVar("T")


@dataclass(frozen=True)
class SearchCalibration:
    """A comparison of approximate searches with an exact one, on the same queries."""

    exact: VectorIndex
    queries: np.ndarray

    def first(self, settings: Iterable[T], searched_with: Callable[[T], VectorIndex]) -> tuple[T, float] | None:
        """Returns the first of the settings by which searches find RECALL_WANTED of the exact results, and the recall."""
        best: list[set[Any]] = []
        for setting in settings:
            best = best or nearest_keys(self.exact, self.queries)
            recall = mean_recall(nearest_keys(searched_with(setting), self.queries), best)
            if recall >= RECALL_WANTED:
                return setting, recall
        return None


def nearest_keys(index: VectorIndex, queries: np.ndarray) -> list[set[Any]]:
    """Returns for each query the keys of its RECALL_AT best items."""
    return [set(found.column(0).to_pylist()) for found in index.search(queries, RECALL_AT, columns=[])]


def mean_recall(found: list[set[Any]], exact: list[set[Any]]) -> float:
    """Returns the share of `exact` that is in `found`, averaged over the queries."""
    return float(np.mean([len(some & best) / len(best) for some, best in zip(found, exact, strict=True)]))
