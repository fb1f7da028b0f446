"""The requests of a log and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.vocabulary import value_hashes


@dataclass(frozen=True)
class Answers:
    """The requests of a log and the items of their answers."""

    requests: pa.Table
    """The columns of the log but features and items, and `cluster`, a number for each user, int64."""
    shown: pa.Table
    """`request`, the position in `requests`; key, retrieval_score and ranking_score: a row for each item, best first."""


def read_answers(tables: Iterable[pa.Table], visit: Callable[[pa.Table, np.ndarray], None] | None = None) -> Answers:
    """Reads the requests of a log, table by table, and calls `visit` with each table and the clusters of its requests.

    Raises ValueError where there are no requests.
    """
    requests, shown, before = [], [], 0
    for rows in tables:
        clusters = _clusters(rows["user"].combine_chunks(), before)
        if visit:
            visit(rows, clusters)
        shown.append(_shown_items(rows, before))
        requests.append(rows.drop_columns(["features", "items"]).append_column("cluster", pa.array(clusters)))
        before += rows.num_rows
    if not requests:
        raise ValueError("the log has no request in this time: choose other --since and --until")
    return Answers(*(pa.concat_tables(parts, promote_options="permissive") for parts in (requests, shown)))


def _shown_items(rows: pa.Table, first: int) -> pa.Table:
    lengths = pc.list_value_length(rows["items"]).to_numpy()
    items = pc.list_flatten(rows["items"].combine_chunks())
    request = pa.array(first + np.repeat(np.arange(len(lengths)), lengths))
    return pa.table([request, *items.flatten()], ["request", "key", "retrieval_score", "ranking_score"])


def _clusters(users: pa.Array, first: int) -> np.ndarray:
    """Returns a number for each user, int64; a request without a user is one of its own."""
    unknown = users.is_null().to_numpy(zero_copy_only=False)
    return np.where(unknown, -1 - first - np.arange(len(users)), clusters_of(users))


def clusters_of(users: pa.Array) -> np.ndarray:
    """Returns the cluster of each user, int64: a hash of the key, an int64 or a string."""
    return value_hashes(users).view(np.int64)
