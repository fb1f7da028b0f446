"""The dataset directory, which preparation writes and training reads: its files, and how to open it.

schema.json                columns, with the vocabulary sizes and means that preparation found
vocabularies/              <table>.parquet: the values of a table in the order of its rows
catalogue.parquet          every item that may be recommended, with its raw columns, when the schema has an item key
train/ validation/ test/   MDS row blocks; a folder without index.json is not a split
rejected/                  bad rows as Parquet with the reason, when there were any
summary.json               counts of what went in and what came out; written last
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_ray.schema import Schema

SUMMARY = "summary.json"


@dataclass(frozen=True)
class DatasetDirectory:
    """A prepared dataset on a file system: its root folder, its schema and its summary."""

    root: Path
    schema: Schema
    summary: dict[str, Any]

    @staticmethod
    def open(path: str | os.PathLike[str]) -> DatasetDirectory:
        """Opens a dataset directory. Raises FileNotFoundError when `path` is not a complete one."""
        root = Path(path)
        if not (root / SUMMARY).exists():
            raise FileNotFoundError(f"{root} is not a dataset directory (no {SUMMARY}): write one with jobs/prepare_data.py")
        return DatasetDirectory(root, Schema.load(root / "schema.json"), json.loads((root / SUMMARY).read_text()))

    def split(self, name: str) -> Path | None:
        """Returns the folder of a split, or None when the split has no rows."""
        return self.root / name if (self.root / name / "index.json").exists() else None


def copy_encoding(dataset: DatasetDirectory, folder: Path) -> None:
    """Copies schema and vocabularies to `folder`: trained weights need them, and preparing the dataset again changes them."""
    shutil.copy2(dataset.root / "schema.json", folder)
    if (dataset.root / "vocabularies").exists():
        shutil.copytree(dataset.root / "vocabularies", folder / "vocabularies", dirs_exist_ok=True)
