"""Stored columns of users, looked up by id; and raw rows of requests as the typed columns that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.data.vocabulary import ValueLookup
from recsys_ray.schema import Categorical, Column
from recsys_ray.serving.encoder import kind_of, raw_type


def raw_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> pa.Table:
    """Returns these columns of the rows; a value that is left out is null. Raises ValueError naming a column of another type."""
    arrays = {column.name: _typed([row.get(column.name) for row in rows], column) for column in columns}
    return pa.table(arrays)


def _typed(values: list[Any], column: Column) -> pa.Array:
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError("a boolean is neither a number nor an id")
        return pa.array(values, raw_type(column))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"column {column.name!r} cannot be read as {kind_of(column)}: {error}") from error


@dataclass(frozen=True)
class UserTable:
    """Raw columns of users that the models read, one row a user."""

    rows: pa.Table
    lookup: ValueLookup

    @staticmethod
    def load(paths: Sequence[str], key: Categorical, columns: Sequence[Column], timestamp: str = "") -> UserTable:
        """Reads Parquet files or folders; a column counts from the first of them that has it.

        Of several rows of a user the one with the latest `timestamp` counts. Raises ValueError for a table without the key, or
        where users have several rows and no timestamp.
        """
        merged = pa.table({key.name: pa.array([], raw_type(key))})
        for path in paths:
            merged = _joined(merged, _latest(path, key, columns, timestamp), key)
        lookup = ValueLookup.of(merged[key.name].combine_chunks())
        return UserTable(merged, lookup)

    def find(self, user: Any) -> dict[str, Any]:
        """Returns what is stored of a user; nothing of one who is not there. Raises ValueError for an id of another type."""
        try:
            asked = pa.array([user], self.lookup.values.type)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ValueError(f"user: ids are of type {self.lookup.values.type}: {error}") from error
        row = int(self.lookup.rows(asked)[0]) - 1
        return self.rows.slice(row, 1).to_pylist()[0] if row >= 0 else {}


def _latest(path: str, key: Categorical, columns: Sequence[Column], timestamp: str) -> pa.Table:
    files = find_parquet(path)
    names = files.arrow_schema.names
    if key.name not in names:
        raise ValueError(f"--users {path} has no column {key.name!r}, which tells users apart")
    wanted = {column.name: raw_type(column) for column in columns if column.name in names} | {key.name: raw_type(key)}
    table = files.read([*wanted, *([timestamp] if timestamp in names else [])])
    table = table.filter(table[key.name].is_valid())
    keys = table[key.name].combine_chunks().cast(raw_type(key))
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    times = table[timestamp].combine_chunks().cast(pa.int64()).to_numpy() if timestamp in names else np.zeros(len(codes))
    order = np.lexsort((times, codes))
    last = order[np.append(codes[order][1:] != codes[order][:-1], True)] if len(order) else order
    if len(last) < len(order) and timestamp not in names:
        raise ValueError(f"--users {path} has {len(order) - len(last)} users twice and no timestamp column to tell the latest")
    kept = table.take(pa.array(last))
    return pa.table({name: kept[name].cast(kind) for name, kind in wanted.items()})


def _joined(left: pa.Table, right: pa.Table, key: Categorical) -> pa.Table:
    """Returns the users of both tables, with the columns of both."""
    added = [name for name in right.column_names if name not in left.column_names]
    if left.num_rows == 0:
        return right
    keys = pa.concat_arrays([left[key.name].combine_chunks(), right[key.name].combine_chunks()]).unique()
    parts: dict[str, pa.Array] = {}
    for table, names in ((left, left.column_names), (right, added)):
        rows = ValueLookup.of(table[key.name].combine_chunks()).rows(keys)
        places = pa.array(rows - 1, mask=rows == 0)
        parts |= {name: table[name].combine_chunks().take(places) for name in names if name != key.name}
    return pa.table({key.name: keys, **parts})
