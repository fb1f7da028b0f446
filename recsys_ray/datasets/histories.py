"""The recent items of a user before each interaction, a sequence feature for retrieval models.

For data that fit one machine's memory. For larger data compute the same column in the warehouse by a window function, in SQL
`collect_list(item_id) OVER (PARTITION BY user_id ORDER BY timestamp ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING)`, reversed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def with_recent_items(
    interactions: pa.Table, length: int, *, user: str = "user_id", item: str = "item_id", timestamp: str = "timestamp"
) -> pa.Table:
    """Returns `interactions` with a list column `recent_items`: the user's items before that row, latest first.

    A list has at most `length` items. Rows keep their order; rows with the same timestamp count as following one another in the
    order of the table, so that a later one lists the items of an earlier one.
    """
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
