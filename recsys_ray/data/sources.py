"""Parquet in: list the files, read their footers, refuse what cannot work before any row is read, join users and items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from recsys_ray.config import PrepareConfig
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Timestamp, Weight


@dataclass(frozen=True)
class ParquetFiles:
    """The files behind one path, glob or URL, with what their footers say."""

    filesystem: Any
    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    rows: int
    arrow_schema: pa.Schema


def find_parquet(path: str) -> ParquetFiles:
    """Lists `path` (file, folder, glob or URL of any fsspec store) and reads every footer.

    Raises FileNotFoundError when nothing is there, ValueError naming a file that is empty, truncated or of another schema.
    """
    filesystem, root = fsspec.core.url_to_fs(path)
    if any(mark in root for mark in "*?["):
        found = sorted(filesystem.glob(root))
    elif filesystem.isdir(root):
        found = sorted(filesystem.find(root))
    else:
        found = [root] if filesystem.exists(root) else []
    paths = [name for name in found if name.endswith((".parquet", ".pq")) or name == root]
    if not paths:
        raise FileNotFoundError(f"no Parquet file at {path}: wants a .parquet file, a folder of them, or a glob")
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda name: _footer(filesystem, name), paths))
        stamps = tuple(pool.map(lambda name: _stamp(filesystem, name), paths))
    first = footers[0].schema.to_arrow_schema()
    for name, footer in zip(paths, footers, strict=True):
        _check_same_columns(first, footer.schema.to_arrow_schema(), paths[0], name)
    return ParquetFiles(filesystem, tuple(paths), stamps, sum(footer.num_rows for footer in footers), first)


def _footer(filesystem: Any, path: str) -> pq.FileMetaData:
    try:
        with filesystem.open(path, "rb") as file:
            return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}): write it again or leave it out") from error


def _stamp(filesystem: Any, path: str) -> str:
    info = filesystem.info(path)
    changed = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created") if key in info), "")
    return f"{path} {info['size']} {changed}"


def _check_same_columns(first: pa.Schema, other: pa.Schema, first_path: str, path: str) -> None:
    for field in first:
        if field.name not in other.names:
            raise ValueError(f"{path} lacks column {field.name!r}, which {first_path} has")
        if other.field(field.name).type != field.type:
            found = other.field(field.name).type
            raise ValueError(f"{path}: column {field.name!r} has type {found}, but {field.type} in {first_path}: cast one")


def fingerprint(sources: list[ParquetFiles], *settings: str) -> str:
    """Changes when a source file, the schema or a setting does."""
    stamps = [stamp for source in sources for stamp in source.stamps]
    return hashlib.sha256("\n".join([*stamps, *settings]).encode()).hexdigest()[:16]


def check_columns(schema: Schema, arrow_schema: pa.Schema, origin: str) -> None:
    """Raises ValueError naming a column of `schema` that `origin` lacks or holds in a type its kind cannot take."""
    for column in schema.columns:
        if column.name not in arrow_schema.names:
            raise ValueError(
                f"column {column.name!r} of the schema is not in {origin}, which has: {', '.join(arrow_schema.names)}"
            )
        found = arrow_schema.field(column.name).type
        wanted, accepts = _accepted(column)
        if not accepts(found):
            raise ValueError(
                f"column {column.name!r} in {origin} has type {found}, but as {type(column).__name__.lower()} it must be "
                f"{wanted}: cast it, or change its kind or dtype in the schema"
            )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _accepted(column: Column) -> tuple[str, Callable[[pa.DataType], bool]]:
    match column:
        case Label() | Dense() | Weight():
            return "a number or boolean", _is_number
        case Timestamp():
            return "a timestamp, date or integer", lambda kind: pa.types.is_temporal(kind) or pa.types.is_integer(kind)
        case Categorical(multi=True):
            one = _accepted(Categorical(column.name, dtype=column.dtype))
            return f"a list, each {one[0]}", lambda kind: pa.types.is_nested(kind) and one[1](kind.value_type)
        case Categorical(dtype="int"):
            return "an integer (dtype int)", lambda kind: pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        case Categorical():
            return "a string (dtype string)", lambda kind: _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


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
        """Rows with columns `names` and `row_hash` (uint64, from file and position: the row's identity in every pass)."""
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
    for path, key in ((config.users, config.user_key), (config.items, config.item_key)):
        if not path:
            continue
        files = find_parquet(path)
        for origin, names in ((config.parquet, interactions.arrow_schema.names), (path, files.arrow_schema.names)):
            if key not in names:
                raise ValueError(f"join key {key!r} is not a column of {origin}, which has: {', '.join(names)}")
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
    counts = pc.value_counts(table[key])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise ValueError(
            f"{files.paths[0]}: {key} {repeated[0]['values']} is there {repeated[0]['counts']} times: wants one row each"
        )
    return table


def _join(batch: pa.Table, tables: list[tuple[str, pa.Table]], names: list[str]) -> pa.Table:
    """Left join by lookup, order kept: a key that the table lacks gives nulls, hence "missing"."""
    for key, table in tables:
        positions = pc.index_in(batch[key], value_set=table[key].cast(batch.schema.field(key).type))
        for name in table.column_names:
            if name != key:
                batch = batch.append_column(name, table[name].take(positions))
    return batch.select([*names, "row_hash"])
