"""Parquet files behind a path, glob or URL, which are listed and checked by their footers before any row is read."""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.data.sources.table_formats import check_plain_parquet


@dataclass(frozen=True)
class ParquetFiles:
    """The files behind one path, glob or URL of any fsspec store, with what their footers say; an InputTable."""

    filesystem: Any
    paths: tuple[str, ...]
    stamps: tuple[str, ...]
    """Path, size and time of change (or ETag) of each file."""
    row_groups: tuple[tuple[int, ...], ...]
    """The number of rows in each row group, by file."""
    arrow_schema: pa.Schema

    @property
    def rows(self) -> int:
        """The number of rows in all files."""
        return sum(map(sum, self.row_groups))

    def read(self, columns: list[str]) -> pa.Table:
        """Reads these columns of all files into this process."""
        return pq.read_table(list(self.paths), columns=columns, filesystem=self.filesystem, partitioning=None)

    def batches(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yields these columns of all files, as tables of a few rows."""
        for path in self.paths:
            with pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=True) as file:
                for batch in file.iter_batches(columns=columns):
                    yield pa.Table.from_batches([batch]).select(columns)

    def unreadable(self) -> str:
        """Returns the first file with a page that cannot be read and why, or an empty string; reads everything, so it is slow."""
        for path in self.paths:
            try:
                with self.filesystem.open(path, "rb") as file:
                    for _ in pq.ParquetFile(file).iter_batches():
                        pass
            except (pa.ArrowException, OSError) as error:
                return f"{path} is damaged ({' '.join(str(error).split())})"
        return ""


def find_parquet(path: str) -> ParquetFiles:
    """Lists `path` (file, folder, glob or URL of any fsspec store) and reads every footer. What exists is no glob.

    Raises FileNotFoundError when nothing is there, ValueError naming a file that is empty, truncated or of another schema, or a
    table of Delta, Iceberg or Hudi.
    """
    filesystem, root = fsspec.core.url_to_fs(path)
    paths = _list_files(filesystem, root)
    if not paths:
        raise FileNotFoundError(f"no Parquet file at {path}: wants a .parquet file, a folder of them, or a glob")
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda name: _footer(filesystem, name), paths))
        stamps = tuple(pool.map(lambda name: _stamp(filesystem, name), paths))
    first = footers[0].schema.to_arrow_schema()
    for name, footer in zip(paths, footers, strict=True):
        _check_same_columns(first, footer.schema.to_arrow_schema(), paths[0], name)
    row_groups = [tuple(footer.row_group(number).num_rows for number in range(footer.num_row_groups)) for footer in footers]
    return ParquetFiles(filesystem, tuple(paths), stamps, tuple(row_groups), first)


def _list_files(filesystem: Any, root: str) -> list[str]:
    """Returns the file `root`, or the Parquet files in the folder, or those that match the glob."""
    if filesystem.isfile(root):
        return [root]
    is_folder = filesystem.isdir(root)
    found = sorted(filesystem.find(root) if is_folder else _matching(filesystem, root))
    if found:
        folder = root if is_folder else posixpath.commonpath(list(map(posixpath.dirname, found)))
        check_plain_parquet(filesystem, folder, found)
    return [name for name in found if name.endswith((".parquet", ".pq")) and not _hidden(name, root)]


def _matching(filesystem: Any, pattern: str) -> list[str]:
    """Returns what matches the glob; a folder in it that exists is meant literally, whatever its name looks like."""
    if not _looks_like_glob(pattern):
        return []
    above = map(str, PurePosixPath(pattern).parents)
    literal = next((folder for folder in above if _looks_like_glob(folder) and filesystem.isdir(folder)), "")
    return filesystem.glob(glob.escape(literal) + pattern.removeprefix(literal))


def _looks_like_glob(path: str) -> bool:
    return glob.escape(path) != path


def _hidden(path: str, root: str) -> bool:
    """Returns whether a name below `root` starts with a dot or underscore, as those of logs and unfinished work do in Spark."""
    below = path.removeprefix(root) if path.startswith(root) else PurePosixPath(path).name
    return any(part.startswith((".", "_")) for part in PurePosixPath(below).parts)


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
            raise ValueError(
                f"{path} lacks column {field.name!r}, which {first_path} has: write it again with that column, or name only "
                "the files of one table"
            )
        found = other.field(field.name).type
        if found != field.type:
            remedy = "write one of them again, with one type (pandas: astype before to_parquet)"
            raise ValueError(f"{path}: column {field.name!r} has type {found}, but {field.type} in {first_path}: {remedy}")
