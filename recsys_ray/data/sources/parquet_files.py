"""Parquet files behind a path, glob or URL, which are listed and checked by their footers before any row is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq


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
    paths = [name for name in found if name == root or (name.endswith((".parquet", ".pq")) and not _hidden(name, root))]
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
