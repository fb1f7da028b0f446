"""The join of interactions with the tables of users and items, which every task holds in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.sources.column_types import is_text
from recsys_ray.data.sources.table import InputTable
from recsys_ray.data.transform import canonical_ids
from recsys_ray.schema import Categorical


class Lookup(NamedTuple):
    """A table with one row per user or per item, joined to the interactions on column `key`."""

    path: str
    key: str
    table: InputTable


def read_lookup(lookup: Lookup, names: list[str]) -> pa.Table:
    """Reads the key and those of the columns `names` that the table has. Raises ValueError for a key with several rows."""
    path, key, source = lookup
    table = source.read([key, *(name for name in names if name in source.arrow_schema.names)])
    counts = pc.value_counts(_key_values(table[key]).drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        value, count = repeated[0]["values"], repeated[0]["counts"]
        raise ValueError(f"{path}: {key} {value} is there {count} times: wants one row for each {key}")
    return table


def join_lookups(lookups: Callable[[], list[tuple[str, pa.Table]]], names: list[str], batch: pa.Table) -> pa.Table:
    """Returns columns `names` of a batch after a left join with each (key, table) of `lookups()`; rows keep their order.

    A key that the table lacks gives nulls, which count as missing values.
    """
    for key, table in lookups():
        positions = pc.index_in(_key_values(batch[key]), value_set=_key_values(table[key]), skip_nulls=True)
        for name in table.column_names:
            if name != key:
                batch = batch.append_column(name, table[name].take(positions))
    return batch.select(names)


def _key_values(values: pa.ChunkedArray) -> pa.Array:
    text = is_text(values.type)
    return canonical_ids(Categorical("key", dtype="string" if text else "int"), values.combine_chunks())
