"""Interactions with their users and items: one table of joined rows, read by Ray Data as often as wanted."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from recsys_ray.config import PrepareConfig
from recsys_ray.data.arrow_types import check_key, is_text
from recsys_ray.data.parquet_files import ParquetFiles, find_parquet
from recsys_ray.data.transform import canonical
from recsys_ray.schema import Categorical

ROW_HASH = "row_hash"
"""The column, uint64, that Ray Data adds: from file and position, so a row keeps it in every pass."""


@dataclass(frozen=True)
class Source:
    """All input tables of one preparation; `read` yields the joined rows."""

    interactions: ParquetFiles
    lookups: tuple[tuple[str, ParquetFiles], ...]
    arrow_schema: pa.Schema

    @property
    def files(self) -> list[ParquetFiles]:
        return [self.interactions, *(files for _, files in self.lookups)]

    def read(self, names: list[str]) -> ray.data.Dataset:
        """Rows with columns `names` and ROW_HASH."""
        own = self.interactions.arrow_schema.names
        keys = [key for key, _ in self.lookups]
        wanted = list(dict.fromkeys([*[name for name in names if name in own], *keys]))
        tables = [(key, _lookup_table(key, files, names, own)) for key, files in self.lookups]
        rows = ray.data.read_parquet(
            list(self.interactions.paths),
            filesystem=self.interactions.filesystem,
            columns=wanted,
            include_row_hash=True,
            partitioning=None,
            file_extensions=None,
        )
        if not tables:
            return rows
        tables_ref = ray.put(tables)
        return rows.map_batches(lambda batch: _join(batch, ray.get(tables_ref), names), batch_format="pyarrow", batch_size=None)


def open_source(config: PrepareConfig) -> Source:
    """Raises ValueError for a join key that a table lacks, holds twice, or for a column that two tables have."""
    interactions = find_parquet(config.parquet)
    arrow_schema, lookups = interactions.arrow_schema, []
    if ROW_HASH in arrow_schema.names:
        raise ValueError(f"column {ROW_HASH!r} of {config.parquet} has a name that preparation needs: rename it")
    for path, key in ((config.users, config.user_key), (config.items, config.item_key)):
        if not path:
            continue
        files = find_parquet(path)
        check_key(key, interactions.arrow_schema, config.parquet, files.arrow_schema, path)
        for field in files.arrow_schema:
            if field.name == key:
                continue
            if field.name in arrow_schema.names:
                raise ValueError(f"column {field.name!r} of {path} is in another table too: rename one")
            arrow_schema = arrow_schema.append(field)
        lookups.append((key, files))
    return Source(interactions, tuple(lookups), arrow_schema)


def _lookup_table(key: str, files: ParquetFiles, names: list[str], own: list[str]) -> pa.Table:
    columns = [key, *(name for name in names if name in files.arrow_schema.names and name not in own)]
    table = pq.read_table(list(files.paths), columns=columns, filesystem=files.filesystem, partitioning=None)
    counts = pc.value_counts(_keys(table[key]).drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        value, count = repeated[0]["values"], repeated[0]["counts"]
        raise ValueError(f"{files.paths[0]}: {key} {value} is there {count} times: wants one row for each {key}")
    return table


def _keys(values: pa.ChunkedArray) -> pa.Array:
    text = is_text(values.type)
    return canonical(Categorical("key", dtype="string" if text else "int"), values.combine_chunks())


def _join(batch: pa.Table, tables: list[tuple[str, pa.Table]], names: list[str]) -> pa.Table:
    """Left join by lookup, order kept: a key that the table lacks gives nulls, hence "missing"."""
    for key, table in tables:
        positions = pc.index_in(_keys(batch[key]), value_set=_keys(table[key]), skip_nulls=True)
        for name in table.column_names:
            if name != key:
                batch = batch.append_column(name, table[name].take(positions))
    return batch.select([*names, ROW_HASH])
