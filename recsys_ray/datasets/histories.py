"""What a user did before each interaction: the sequence feature of a retrieval model. Used by the other modules here.

For data that fit one machine's memory. On larger ones the same column is a window function of the warehouse, in SQL
`collect_list(item_id) OVER (PARTITION BY user_id ORDER BY timestamp ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING)`, reversed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def with_recent_items(
    interactions: pa.Table, length: int, user: str = "user_id", item: str = "item_id", timestamp: str = "timestamp"
) -> pa.Table:
    """`interactions` with a list column `recent_items`: the items of the user's interactions before the row's, latest first, at
    most `length`. Rows keep their order; those of one moment follow one another as they stand, and see one another's items."""
    users, items, times = (interactions[name].to_numpy() for name in (user, item, timestamp))
    order = np.lexsort((times, users))
    starts = np.flatnonzero(np.append(True, users[order][1:] != users[order][:-1]))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    lengths = np.empty(len(order), np.int64)
    lengths[order] = np.minimum(place, length)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps_back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 1
    recent = items[order][np.repeat(rank, lengths) - steps_back]
    return interactions.append_column("recent_items", pa.ListArray.from_arrays(offsets.astype(np.int32), recent))
