"""The input of one preparation: interactions, with the columns of users and items joined to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from recsys_ray.columns import ROW_HASH
from recsys_ray.config import PrepareConfig
from recsys_ray.data.sources.column_types import TableColumns, check_join_key
from recsys_ray.data.sources.joins import Lookup, join_lookups, read_lookup
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.data.sources.table import Broadcast, InputTable, PassInput

TABLE_PREFIX = "table:"
"""What the name of a Spark table or view follows in `--parquet`, `--users` and `--items`."""


@dataclass(frozen=True)
class Source:
    """All input tables of one preparation, as one table of joined rows that an engine can read several times."""

    interactions: InputTable
    lookups: tuple[Lookup, ...]
    """The tables of users and of items, when given."""
    arrow_schema: pa.Schema
    """The columns of all tables."""
    items: Lookup | None = None
    """The table of items among `lookups`, when given."""

    @property
    def tables(self) -> list[InputTable]:
        """The interactions and the tables of users and items."""
        return [self.interactions, *(lookup.table for lookup in self.lookups)]

    def pass_input(self, names: list[str], broadcast: Broadcast) -> PassInput:
        """Returns what a pass reads to see columns `names` and ROW_HASH, and sends users and items to the tasks.

        Raises ValueError for a user or an item with several rows.
        """
        own = self.interactions.arrow_schema.names
        keys = [lookup.key for lookup in self.lookups]
        wanted = list(dict.fromkeys([*(name for name in names if name in own), *keys]))
        if not self.lookups:
            return PassInput(self.interactions, wanted, _unchanged)
        missing = [name for name in names if name not in own]
        tables = [(lookup.key, read_lookup(lookup, missing)) for lookup in self.lookups]
        return PassInput(self.interactions, wanted, partial(join_lookups, broadcast(tables), [*names, ROW_HASH]))


def open_source(config: PrepareConfig, open_table: Callable[[str], InputTable]) -> Source:
    """Opens all input tables; `open_table` opens a Spark table by name.

    Raises FileNotFoundError or ValueError for a table that does not exist, a join key that a table lacks, or a column that two
    tables have.
    """
    interactions = _open(config.parquet, open_table)
    arrow_schema, lookups = interactions.arrow_schema, []
    if ROW_HASH in arrow_schema.names:
        raise ValueError(f"column {ROW_HASH!r} of {config.parquet} has a name that preparation needs: rename it")
    left = TableColumns(interactions.arrow_schema, config.parquet)
    for path, key in ((config.users, config.user_key), (config.items, config.item_key)):
        if not path:
            continue
        table = _open(path, open_table)
        check_join_key(key, left, TableColumns(table.arrow_schema, path))
        for field in table.arrow_schema:
            if field.name == key:
                continue
            if field.name in arrow_schema.names:
                raise ValueError(f"column {field.name!r} of {path} is in another table too: rename one")
            arrow_schema = arrow_schema.append(field)
        lookups.append(Lookup(path, key, table))
    return Source(interactions, tuple(lookups), arrow_schema, lookups[-1] if config.items else None)


def input_fingerprint(source: Source, *settings: str) -> str:
    """Returns 16 hexadecimal digits that change when a source table, the schema or a setting does."""
    stamps = [stamp for table in source.tables for stamp in table.stamps]
    return hashlib.sha256("\n".join([*stamps, *settings]).encode()).hexdigest()[:16]


def _open(path: str, open_table: Callable[[str], InputTable]) -> InputTable:
    return open_table(path.removeprefix(TABLE_PREFIX)) if path.startswith(TABLE_PREFIX) else find_parquet(path)


def _unchanged(batch: pa.Table) -> pa.Table:
    return batch
