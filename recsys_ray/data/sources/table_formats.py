"""Folders of Delta, Iceberg and Hudi, which hold Parquet files that no longer belong to the table beside those that do."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

MARKS = {"_delta_log": "Delta", "metadata": "Iceberg", ".hoodie": "Hudi"}
"""The folder at the root of a table that says which files belong to it -> the format. Iceberg's holds *.metadata.json."""
FOLDERS_ABOVE = 3
"""The folders above an input that are looked at: the root of a table is above its partitions, and above Iceberg's `data`."""


def check_plain_parquet(filesystem: Any, folder: str, names: Iterable[str]) -> None:
    """Raises ValueError where `folder`, one above it, or one below it, by the `names` of the files there, is such a table."""
    above = (place for place in map(str, PurePosixPath(folder).parents) if place not in ("/", "."))
    places = [folder, *islice(above, FOLDERS_ABOVE)]
    around = [name for place in places for mark in MARKS for name in _list_folder(filesystem, f"{place}/{mark}")]
    for name in [*around, *names]:
        *parts, file = name.split("/")
        mark = next((mark for mark in MARKS if mark in parts), "")
        if mark and (mark != "metadata" or ".metadata.json" in file):
            raise ValueError(
                f"{'/'.join(parts[: parts.index(mark)])} is a table of {MARKS[mark]}, whose files hold deleted rows too: prepare "
                "it with --engine spark as table:NAME, or write its rows as plain Parquet (Spark: table(NAME).write.parquet)"
            )


def _list_folder(filesystem: Any, folder: str) -> list[str]:
    try:
        return filesystem.ls(folder, detail=False)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
