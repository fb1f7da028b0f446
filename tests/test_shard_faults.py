"""Shards that are missing, damaged or hard to copy: read where possible, else an error that names the file."""

from __future__ import annotations

import errno
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from recsys_ray.columns import ROW_HASH, SPLIT_COLUMN
from recsys_ray.compat.streaming_compat import StreamingWorld
from recsys_ray.config import DataConfig
from recsys_ray.data.blocks.collator import BlockCollator
from recsys_ray.data.blocks.packing import pack_rows
from recsys_ray.data.blocks.parts import PartWriter
from recsys_ray.data.loading import shards
from recsys_ray.data.loading.stream import BlockStream, batch_layout
from tests.support.damage import flip_a_byte, truncate
from tests.support.workers import run_workers

from streaming.base.storage.download import DOWNLOADER_MAPPINGS, LocalDownloader  # isort: skip (compat comes first)

BLOCK_ROWS, PARTS, ROWS_PER_PART = 64, 12, 256
ROWS = PARTS * ROWS_PER_PART
SECONDS = 50
"""The longest that a permanent fault may take to become an error, start-up of loader processes on a busy machine included; Mosaic
Streaming's own timeouts are of a minute."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a split of twelve shards whose rows carry their number."""
    columns = {"row": "ndarray:int32"}
    writer = PartWriter(tmp_path / "dataset", columns, BLOCK_ROWS, ROWS_PER_PART)
    writer.root.mkdir()
    writer.start()
    zeros = pa.array(np.zeros(ROWS_PER_PART, np.uint64))
    parts = np.arange(ROWS, dtype=np.int32).reshape(PARTS, -1)
    tables = (pack_rows(pa.table({"row": rows}), columns) for rows in parts)
    tables = (table.append_column(SPLIT_COLUMN, zeros).append_column(ROW_HASH, zeros) for table in tables)
    writer.commit([writer.write(table, number) for number, table in enumerate(tables)])
    return writer.root / "train"


def a_shard(folder: Path) -> Path:
    return sorted(folder.glob("part-*/*.zstd"))[1]


class Store(LocalDownloader):
    """A store at `scheme://folder`, which Mosaic Streaming finds by its scheme, that copies files of this machine."""

    scheme = ""
    copies: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.copies = Counter()

    @classmethod
    def url(cls, folder: Path) -> str:
        """Registers the store in this process, and returns the folder's URL there."""
        DOWNLOADER_MAPPINGS[cls.scheme] = cls
        return f"{cls.scheme}://{folder}"

    @classmethod
    def _client_identifier(cls) -> str:
        return cls.scheme

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        """Copies a file; the name is that of Mosaic Streaming's abstract method."""
        if not remote.endswith(".zstd"):
            self.copy(remote, local, timeout)
            return
        self.copies[remote] += 1
        self.copy_shard(remote, local, timeout)

    def copy(self, remote: str, local: str, timeout: float) -> None:
        super()._download_file_impl(remote.removeprefix(f"{self.scheme}://"), local, timeout)

    def copy_shard(self, remote: str, local: str, timeout: float) -> None:
        raise NotImplementedError


class TruncatesFirstCopies(Store):
    scheme = "truncates"

    def copy_shard(self, remote: str, local: str, timeout: float) -> None:
        self.copy(remote, local, timeout)
        if self.copies[remote] == 1:
            truncate(Path(local))


class FlipsAByteInFirstCopies(Store):
    scheme = "flips"

    def copy_shard(self, remote: str, local: str, timeout: float) -> None:
        self.copy(remote, local, timeout)
        if self.copies[remote] == 1:
            flip_a_byte(Path(local))


class FailsTwice(Store):
    scheme = "fails"

    def copy_shard(self, remote: str, local: str, timeout: float) -> None:
        if self.copies.total() <= 2:
            raise OSError(errno.EIO, "the store is away")
        self.copy(remote, local, timeout)


class FailsForGood(Store):
    scheme = "away"

    def copy_shard(self, remote: str, local: str, timeout: float) -> None:
        raise OSError(errno.EIO, "the store is away")


def read(folder: Path, config: DataConfig, store: type[Store] | None, after_step: Callable | None) -> None:
    """Reads two epochs on each worker, and saves the numbers of the rows."""
    dist.init_process_group("gloo")
    out, rank = folder.parent, dist.get_rank()
    layout = batch_layout(2 * BLOCK_ROWS, BLOCK_ROWS, dist.get_world_size())
    stream = BlockStream(
        store.url(folder) if store else str(folder), out / "cache", layout, seed=7, shuffle=True, config=config, weight=""
    )
    for epoch in range(2):
        rows = []
        for step, columns in enumerate(stream):
            rows.append(columns["row"].clone())
            if after_step and rank == 0:
                after_step(out / "cache", epoch, step)
        torch.save(torch.cat(rows), out / f"epoch-{epoch}-rank-{rank}.pt")
    dist.destroy_process_group()


def note_error(folder: Path, config: DataConfig, store: type[Store] | None) -> None:
    """Saves the error that each worker raises, in time and without the others."""
    pytest.MonkeyPatch().setattr(shards, "COPY_ATTEMPTS", 2)
    began = time.monotonic()
    with pytest.raises(shards.ShardError) as error:
        read(folder, config, store, None)
    assert time.monotonic() - began < SECONDS
    (folder.parent / f"error-{dist.get_rank()}").write_text(str(error.value))
    # A launcher ends all workers when one fails. Here each fails by itself, so none may end while its loader processes, which the
    # traceback keeps, still copy shards for the others.
    dist.barrier()


def assert_all_rows_are_read(folder: Path, store: Any = None, after_step: Any = None, workers: int = 1, **config: Any) -> None:
    run_workers(read, workers, folder, DataConfig(**config), store, after_step)
    assert after_step or len(copies(folder.parent / "cache")) == PARTS
    for epoch in range(2):
        rows = torch.cat([torch.load(folder.parent / f"epoch-{epoch}-rank-{rank}.pt") for rank in range(workers)])
        assert torch.equal(rows.sort().values, torch.arange(ROWS, dtype=torch.int32))


def errors_of(folder: Path, store: Any = None, workers: int = 1, **config: Any) -> list[str]:
    """Returns the error of each worker."""
    run_workers(note_error, workers, folder, DataConfig(**config), store)
    return [(folder.parent / f"error-{rank}").read_text() for rank in range(workers)]


@pytest.mark.parametrize(("workers", "loader_workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("fault", [Path.unlink, flip_a_byte, truncate])
def test_shard_that_is_gone_or_damaged_is_named(folder: Path, fault: Callable, workers: int, loader_workers: int) -> None:
    """Every worker that needs the shard raises the error, although they share the node's copies."""
    shard = a_shard(folder)
    fault(shard)
    what = "is missing" if fault is Path.unlink else "is damaged, its checksum is not that in index.json"
    for error in errors_of(folder, workers=workers, loader_workers=loader_workers):
        assert f"{shard} {what}" in error
        assert "Restore it from a copy, or prepare the dataset again with jobs/prepare_data.py --overwrite" in error
    if not loader_workers:  # those are stopped in whatever they do
        assert not [*(folder.parent / "cache" / shard.parent.name).glob("*")], "a damaged copy is left"


@pytest.mark.parametrize("store", [TruncatesFirstCopies, FlipsAByteInFirstCopies])
def test_copy_that_was_damaged_on_its_way_is_made_once_more(folder: Path, store: type[Store]) -> None:
    assert_all_rows_are_read(folder, store)


@pytest.mark.parametrize("store", [TruncatesFirstCopies, FlipsAByteInFirstCopies, FailsTwice])
def test_one_call_gets_over_a_passing_fault(folder: Path, store: type[Store]) -> None:
    """A reader that needs a shard retries on its own what a thread failed to copy ahead of time."""
    stream = shards.CheckedStream(store.url(folder), folder.parent / "cache")
    stream.apply_default({"split": "", "download_timeout": 60.0, "keep_zip": False})
    readers = stream.get_shards(StreamingWorld(1, 1, 1, 0), allow_unsafe_types=False)
    rows = []
    for reader in readers:
        stream.prepare_shard(reader)
        rows += [BlockCollator.of(reader, BLOCK_ROWS)([block])[0]["row"] for block in reader]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(ROWS))


def test_store_that_recovers_costs_a_retry_not_the_run(folder: Path) -> None:
    assert_all_rows_are_read(folder, FailsTwice)


@pytest.mark.parametrize("workers", [1, 2])
def test_store_that_stays_away_is_named(folder: Path, workers: int) -> None:
    for error in errors_of(folder, FailsForGood, workers):
        assert error.startswith(f"away://{folder}/part-")
        assert "cannot be copied to" in error and "the store is away; its store must answer" in error


def copies(cache: Path) -> set[str]:
    """Returns the names of the unpacked shards in a cache."""
    return {str(file.relative_to(cache)) for file in cache.glob("part-*/*.mds")}


def empty_the_cache(cache: Path, epoch: int, step: int) -> None:
    """Removes all copies after the first step, when most shards are copied but not mapped into memory yet."""
    if epoch == step == 0:
        (cache.parent / "removed").write_text("\n".join(copies(cache)))
        for part in cache.glob("part-*"):
            shutil.rmtree(part, ignore_errors=True)


@pytest.mark.parametrize(("workers", "loader_workers"), [(1, 0), (2, 0), (1, 2)])
def test_copies_that_vanish_within_an_epoch_are_made_again(folder: Path, workers: int, loader_workers: int) -> None:
    assert_all_rows_are_read(folder, after_step=empty_the_cache, workers=workers, loader_workers=loader_workers)
    removed = set((folder.parent / "removed").read_text().splitlines())
    assert removed & copies(folder.parent / "cache")
