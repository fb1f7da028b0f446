"""The part of a search that backends share: batches of queries, exclusions, and an exact search where a first one falls short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.serving.index.vector_index import Condition

QUERIES_PER_BATCH = 256


class FoundRows(NamedTuple):
    """The nearest items of a batch of queries."""

    query: np.ndarray
    """int [rows]: the position in the batch of the query that a row was found for; ascending."""
    rows: pa.Table
    """Key, columns and score, a query's best first."""
    exact: bool
    """Whether fewer rows than wanted means that there are no more."""


class FindRows(Protocol):
    """A backend's search for a batch of queries, without exclusions."""

    def __call__(self, queries: np.ndarray, limit: int, *, exact: bool) -> FoundRows:
        """Returns at most `limit` rows for each query; fewer only if there are no more, or the search is not exact."""


@dataclass(frozen=True)
class BatchedSearch:
    """A search of `items` items that differ in the column `key`."""

    items: int
    key: str
    find: FindRows

    def run(self, queries: np.ndarray, k: int, excluded: list[pa.Array]) -> list[pa.Table]:
        """Returns what VectorIndex.search returns. Queries with about as many exclusions are searched together."""
        found: dict[int, pa.Table] = {}
        order = np.argsort([len(keys) for keys in excluded], kind="stable")
        for first in range(0, len(order), QUERIES_PER_BATCH):
            batch = order[first : first + QUERIES_PER_BATCH]
            tables = self._batch(queries[batch], k, [excluded[position] for position in batch])
            found |= dict(zip(batch.tolist(), tables, strict=True))
        return [found[position] for position in range(len(queries))]

    def _batch(self, queries: np.ndarray, k: int, excluded: list[pa.Array]) -> Iterator[pa.Table]:
        found = self._without_shortfall(queries, max(1, min(self.items, k + max(map(len, excluded)))))
        kept = np.arange(len(found.query))
        if any(map(len, excluded)):
            kept = kept[~_is_excluded(found.rows[self.key], found.query, excluded)]
        query = found.query[kept]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        kept, query = kept[rank < k], query[rank < k]
        rows = found.rows if len(kept) == len(found.query) else found.rows.take(kept)
        starts = np.searchsorted(query, np.arange(len(queries) + 1))
        return (rows.slice(first, end - first) for first, end in pairwise(starts.tolist()))

    def _without_shortfall(self, queries: np.ndarray, limit: int) -> FoundRows:
        """Searches exactly for the queries that an approximate search finds too few items for."""
        found = self.find(queries, limit, exact=False)
        short = np.flatnonzero(np.bincount(found.query, minlength=len(queries)) < limit)
        if found.exact or not len(short):
            return found
        more = self.find(queries[short], limit, exact=True)
        whole = np.flatnonzero(~np.isin(found.query, short))
        query = np.concatenate([found.query[whole], short[more.query]])
        order = np.argsort(query, kind="stable")
        return FoundRows(query[order], pa.concat_tables([found.rows.take(whole), more.rows]).take(order), exact=True)


def checked_search(queries: np.ndarray, dim: int, where: Condition, exclude: Sequence[Iterable[Any]]) -> str:
    """Returns the SQL condition of a search. Raises ValueError for arguments that no search can have."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries have shape {queries.shape}; this index wants [any, {dim}]")
    if exclude and len(exclude) != len(queries):
        raise ValueError(f"{len(exclude)} exclusion lists for {len(queries)} queries: wants one each")
    if not isinstance(where, str):
        raise ValueError(f"cannot search where {where!r}: LanceDB takes an SQL condition")
    return where


def excluded_keys(exclude: Sequence[Iterable[Any]], queries: int, key_type: pa.DataType) -> list[pa.Array]:
    """Returns the excluded keys of each query as Arrow arrays."""
    if not exclude:
        return [pa.array([], key_type)] * queries
    return [pa.array(keys if isinstance(keys, np.ndarray) else list(keys), key_type) for keys in exclude]


def _is_excluded(keys: pa.ChunkedArray, query: np.ndarray, excluded: list[pa.Array]) -> np.ndarray:
    """Returns for each found key, bool [rows], whether its query excludes it; all queries at once."""
    every = pa.concat_arrays(excluded)
    of_query = np.repeat(np.arange(len(excluded)), [len(keys) for keys in excluded])
    names = every.unique()
    pairs = of_query * len(names) + pc.index_in(every, names).to_numpy()
    named = pc.index_in(keys, names).fill_null(-1).to_numpy()
    return (named >= 0) & np.isin(query * len(names) + named, pairs)
