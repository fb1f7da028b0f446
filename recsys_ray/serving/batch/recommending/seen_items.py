"""The items that each user has seen already, from the interactions of the same bucket."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.transform import as_seconds, canonical_ids
from recsys_ray.schema import Categorical

SEEN = "__seen__"
"""The column with the keys of the items that a user has seen, latest first; null without any."""


class InteractionColumns(NamedTuple):
    """The columns of interactions that recommendations need."""

    user: Categorical
    item: Categorical
    timestamp: str
    """Empty: interactions are in order of time."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns to read."""
        return (self.user.name, self.item.name, *([self.timestamp] if self.timestamp else []))


def with_seen(users: pa.Table, interactions: pa.Table, columns: InteractionColumns) -> pa.Table:
    """Returns the users with the column SEEN. Interactions of other users do not matter."""
    interactions = interactions.filter(interactions[columns.item.name].is_valid())
    keys = canonical_ids(columns.user, users[columns.user.name].combine_chunks()).dictionary_encode()
    theirs = canonical_ids(columns.user, interactions[columns.user.name].combine_chunks())
    place = pc.index_in(theirs, value_set=keys.dictionary, skip_nulls=True)
    interactions = interactions.filter(place.is_valid())
    place = place.drop_null().to_numpy(zero_copy_only=False)
    order = np.lexsort((-np.arange(len(place)), -_times(interactions, columns.timestamp), place))
    items = canonical_ids(columns.item, interactions[columns.item.name].combine_chunks()).take(pa.array(order))
    counts = np.bincount(place, minlength=len(keys.dictionary))
    lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(counts)), pa.int32()), items)
    return users.append_column(SEEN, lists.take(keys.indices))


def with_history(users: pa.Table, column: str, length: int) -> pa.Table:
    """Returns the users with a list column of the items that they saw last, latest first: what a model reads as their history."""
    return users.append_column(column, pc.list_slice(users[SEEN], 0, length))


def _times(interactions: pa.Table, timestamp: str) -> np.ndarray:
    if not timestamp:
        return np.zeros(interactions.num_rows, np.int64)
    return as_seconds(interactions[timestamp].combine_chunks()).fill_null(0).to_numpy(zero_copy_only=False)
