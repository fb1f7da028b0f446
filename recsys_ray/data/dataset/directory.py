"""The dataset directory: its files, how it is put in place whole, and how to open it.

schema.json          columns, with the sizes and means that preparation found
vocabularies/        <table>.parquet: values in the order of their rows
catalogue.parquet    every item that may be recommended, raw, where the schema has an item key
train/ validation/ test/   MDS row blocks; a split without index.json is no split
rejected/            bad rows as Parquet with the reason (only when there are some)
summary.json         what went in and what came out
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_ray.schema import Schema

SUMMARY = "summary.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class DatasetDirectory:
    root: Path
    schema: Schema
    summary: dict[str, Any]

    @staticmethod
    def open(path: str | os.PathLike[str]) -> DatasetDirectory:
        """Raises FileNotFoundError when `path` is not a complete dataset directory."""
        root = Path(path)
        if not (root / SUMMARY).exists():
            raise FileNotFoundError(f"{root} is not a dataset directory (no {SUMMARY}): write one with jobs/prepare_data.py")
        return DatasetDirectory(root, Schema.load(root / "schema.json"), json.loads((root / SUMMARY).read_text()))

    def split(self, name: str) -> Path | None:
        """The folder of a split, or None where it has no rows."""
        return self.root / name if (self.root / name / "index.json").exists() else None


def copy_encoding(dataset: DatasetDirectory, folder: Path) -> None:
    """Schema and vocabularies, without which weights mean nothing: the dataset may be prepared anew, and then has others."""
    shutil.copy2(dataset.root / "schema.json", folder)
    if (dataset.root / "vocabularies").exists():
        shutil.copytree(dataset.root / "vocabularies", folder / "vocabularies", dirs_exist_ok=True)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the body succeeds and is removed when it does not."""
    staging = out.parent / f".{out.name}.preparing"
    remove_folder(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
        _put_in_place(staging, out)
    finally:
        remove_folder(staging)


def remove_folder(folder: Path) -> None:
    """Tasks that were cancelled may still be writing into it for a moment, which makes removal fail half-way."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _put_in_place(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):
        old = out.parent / f".{out.name}.replaced"
        out.rename(old)
        staging.rename(out)
        shutil.rmtree(old)


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two folders in one step, so that no reader ever finds neither; False where the system cannot (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(ctypes.get_errno(), f"cannot put {left} in the place of {right}: {os.strerror(ctypes.get_errno())}")
