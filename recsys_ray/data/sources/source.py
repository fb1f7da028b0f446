"""Interactions with their users and items: one table of joined rows, which an engine reads as often as wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import ROW_HASH
from recsys_ray.config import PrepareConfig
from recsys_ray.data.sources.column_types import check_key, is_text
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.data.transform import canonical
from recsys_ray.schema import Categorical

TABLE = "table:"
"""What stands before the name of a Spark table or view."""
Share = Callable[[Any], Callable[[], Any]]
"""Hands a value to all tasks, once; tasks call what it returns."""


def hash_sum(rows: pa.Table) -> int:
    """Of ROW_HASH, modulo 2^64: two sets of as many rows that differ have the same one by a chance of 2^-64 alone."""
    return int(rows[ROW_HASH].to_numpy().sum(dtype=np.uint64))


class Table(Protocol):
    """One input table, known before its rows are read: ParquetFiles or a SparkTable."""

    @property
    def rows(self) -> int: ...

    @property
    def arrow_schema(self) -> pa.Schema: ...

    @property
    def stamps(self) -> tuple[str, ...]:
        """Text that changes when the rows do."""

    def read(self, columns: list[str]) -> pa.Table:
        """All rows, here: for users and items."""

    def unreadable(self) -> str:
        """Which part cannot be read, and why; empty when all can."""


@dataclass(frozen=True)
class Rows:
    """What one pass reads: `columns` of `table` with ROW_HASH, then `join`, in the tasks."""

    table: Table
    columns: list[str]
    join: Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Source:
    """All input tables of one preparation; an engine reads the joined rows."""

    interactions: Table
    lookups: tuple[tuple[str, str, Table], ...]
    """Of users and of items, where given: path, join key and table."""
    arrow_schema: pa.Schema
    items: tuple[str, str, Table] | None = None
    """That lookup of items, where given."""

    @property
    def tables(self) -> list[Table]:
        return [self.interactions, *(table for _, _, table in self.lookups)]

    def rows(self, names: list[str], share: Share) -> Rows:
        """Rows with columns `names` and ROW_HASH. Raises ValueError for a user or item that is there twice."""
        own = self.interactions.arrow_schema.names
        keys = [key for _, key, _ in self.lookups]
        wanted = list(dict.fromkeys([*(name for name in names if name in own), *keys]))
        if not self.lookups:
            return Rows(self.interactions, wanted, _unchanged)
        tables = [(key, _lookup_table(path, key, table, names, own)) for path, key, table in self.lookups]
        return Rows(self.interactions, wanted, partial(_join, share(tables), [*names, ROW_HASH]))


def open_source(config: PrepareConfig, open_table: Callable[[str], Table]) -> Source:
    """`open_table` opens a Spark table by name. Raises FileNotFoundError or ValueError for what is not there, a join key that a
    table lacks, or a column that two tables have."""
    interactions = _open(config.parquet, open_table)
    arrow_schema, lookups = interactions.arrow_schema, []
    if ROW_HASH in arrow_schema.names:
        raise ValueError(f"column {ROW_HASH!r} of {config.parquet} has a name that preparation needs: rename it")
    for path, key in ((config.users, config.user_key), (config.items, config.item_key)):
        if not path:
            continue
        table = _open(path, open_table)
        check_key(key, interactions.arrow_schema, config.parquet, table.arrow_schema, path)
        for field in table.arrow_schema:
            if field.name == key:
                continue
            if field.name in arrow_schema.names:
                raise ValueError(f"column {field.name!r} of {path} is in another table too: rename one")
            arrow_schema = arrow_schema.append(field)
        lookups.append((path, key, table))
    return Source(interactions, tuple(lookups), arrow_schema, lookups[-1] if config.items else None)


def _open(path: str, open_table: Callable[[str], Table]) -> Table:
    return open_table(path.removeprefix(TABLE)) if path.startswith(TABLE) else find_parquet(path)


def fingerprint(source: Source, *settings: str) -> str:
    """Changes when a source table, the schema or a setting does."""
    stamps = [stamp for table in source.tables for stamp in table.stamps]
    return hashlib.sha256("\n".join([*stamps, *settings]).encode()).hexdigest()[:16]


def _lookup_table(path: str, key: str, source: Table, names: list[str], own: list[str]) -> pa.Table:
    table = source.read([key, *(name for name in names if name in source.arrow_schema.names and name not in own)])
    counts = pc.value_counts(_keys(table[key]).drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        value, count = repeated[0]["values"], repeated[0]["counts"]
        raise ValueError(f"{path}: {key} {value} is there {count} times: wants one row for each {key}")
    return table


def _keys(values: pa.ChunkedArray) -> pa.Array:
    text = is_text(values.type)
    return canonical(Categorical("key", dtype="string" if text else "int"), values.combine_chunks())


def _unchanged(batch: pa.Table) -> pa.Table:
    return batch


def _join(tables: Callable[[], list[tuple[str, pa.Table]]], names: list[str], batch: pa.Table) -> pa.Table:
    """Left join by lookup, order kept: a key that the table lacks gives nulls, hence "missing"."""
    for key, table in tables():
        positions = pc.index_in(_keys(batch[key]), value_set=_keys(table[key]), skip_nulls=True)
        for name in table.column_names:
            if name != key:
                batch = batch.append_column(name, table[name].take(positions))
    return batch.select(names)
