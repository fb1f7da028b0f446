"""Shards that are missing, damaged or hard to get: read all the same where that can be, else an error that names the file."""

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
from recsys_ray.compat.streaming_compat import World
from recsys_ray.config import DataConfig
from recsys_ray.data.blocks.parts import PartWriter
from recsys_ray.data.blocks.reader import Concatenation
from recsys_ray.data.blocks.records import packed
from recsys_ray.data.loading import shards
from recsys_ray.data.loading.stream import BlockStream, batch_layout
from tests.support.workers import run_workers

BLOCK_ROWS, PARTS, ROWS_PER_PART = 64, 4, 640
ROWS = PARTS * ROWS_PER_PART
SECONDS = 10
"""Within which a fault that lasts is an error. Mosaic Streaming's own timeouts are of a minute."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A split of four shards whose rows carry their number."""
    columns = {"row": "ndarray:int32"}
    writer = PartWriter(tmp_path / "dataset", columns, BLOCK_ROWS, ROWS_PER_PART)
    writer.root.mkdir()
    writer.start()
    zeros = pa.array(np.zeros(ROWS_PER_PART, np.uint64))
    parts = np.arange(ROWS, dtype=np.int32).reshape(PARTS, -1)
    tables = (packed(pa.table({"row": rows}), columns) for rows in parts)
    tables = (table.append_column(SPLIT_COLUMN, zeros).append_column(ROW_HASH, zeros) for table in tables)
    writer.commit([writer.write(table, number) for number, table in enumerate(tables)])
    return writer.root / "train"


def a_shard(folder: Path) -> Path:
    return sorted(folder.glob("part-*/*.zstd"))[1]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


Copy = Callable[..., None]
"""What a store does: (downloader, remote, local, timeout)."""


def first_copies_are_truncated(copy: Copy) -> Copy:
    return _first_copies(copy, truncate)


def first_copies_have_a_flipped_byte(copy: Copy) -> Copy:
    return _first_copies(copy, flip_a_byte)


def _first_copies(copy: Copy, damage: Callable[[Path], None]) -> Copy:
    copies: Counter[str] = Counter()

    def copy_and_damage(downloader: Any, remote: str, local: str, timeout: float) -> None:
        copy(downloader, remote, local, timeout)
        copies[remote] += 1
        if remote.endswith("zstd") and copies[remote] == 1:
            damage(Path(local))

    return copy_and_damage


def fails_three_times(copy: Copy) -> Copy:
    copies: Counter[str] = Counter()

    def fail(downloader: Any, remote: str, local: str, timeout: float) -> None:
        copies[Path(remote).suffix] += 1
        if remote.endswith("zstd") and copies[".zstd"] <= 3:
            raise OSError(errno.EIO, "the store is away")
        copy(downloader, remote, local, timeout)

    return fail


def fails_for_good(copy: Copy) -> Copy:
    shards.ATTEMPTS = 2

    def fail(downloader: Any, remote: str, local: str, timeout: float) -> None:
        if remote.endswith("zstd"):
            raise OSError(errno.EIO, "the store is away")
        copy(downloader, remote, local, timeout)

    return fail


def read(folder: str, config: DataConfig, store: Callable[[Copy], Copy] | None, after_step: Callable | None) -> None:
    """Two epochs on each worker."""
    dist.init_process_group("gloo")
    out, rank = Path(folder).parent, dist.get_rank()
    if store:
        downloader = type(shards.CheckedStream(folder, out / "cache")._downloader)
        downloader._download_file_impl = store(downloader._download_file_impl)
    layout = batch_layout(2 * BLOCK_ROWS, BLOCK_ROWS, dist.get_world_size())
    stream = BlockStream(folder, out / "cache", layout, seed=7, shuffle=True, config=config, weight="")
    for epoch in range(2):
        rows = []
        for step, columns in enumerate(stream):
            rows.append(columns["row"].clone())
            if after_step and rank == 0:
                after_step(out / "cache", step)
        torch.save(torch.cat(rows), out / f"epoch-{epoch}-rank-{rank}.pt")
    dist.destroy_process_group()


def note_error(folder: str, config: DataConfig, store: Callable[[Copy], Copy] | None) -> None:
    """Each worker's own, which it must come to without the others."""
    began = time.monotonic()
    with pytest.raises(shards.ShardError) as error:
        read(folder, config, store, None)
    assert time.monotonic() - began < SECONDS
    (Path(folder).parent / f"error-{dist.get_rank()}").write_text(str(error.value))


def assert_all_rows_are_read(folder: Path, store: Any = None, after_step: Any = None, workers: int = 1, **config: Any) -> None:
    run_workers(read, workers, str(folder), DataConfig(**config), store, after_step)
    for epoch in range(2):
        rows = torch.cat([torch.load(folder.parent / f"epoch-{epoch}-rank-{rank}.pt") for rank in range(workers)])
        assert torch.equal(rows.sort().values, torch.arange(ROWS, dtype=torch.int32))


def errors_of(folder: Path, store: Any = None, workers: int = 1, **config: Any) -> list[str]:
    """Of every worker."""
    run_workers(note_error, workers, str(folder), DataConfig(**config), store)
    return [(folder.parent / f"error-{rank}").read_text() for rank in range(workers)]


@pytest.mark.parametrize(("workers", "loader_workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("fault", [Path.unlink, flip_a_byte, truncate])
def test_shard_that_is_gone_or_damaged_is_named(folder: Path, fault: Callable, workers: int, loader_workers: int) -> None:
    """By every worker that needs it, although they share the node's copies."""
    shard = a_shard(folder)
    fault(shard)
    what = "is missing" if fault is Path.unlink else "is damaged, its checksum is not that in index.json"
    for error in errors_of(folder, workers=workers, loader_workers=loader_workers):
        assert f"{shard} {what}" in error
        assert "Restore it from a copy, or prepare the dataset again with jobs/prepare_data.py --overwrite" in error
    if not loader_workers:  # those are stopped in whatever they do
        assert not [*(folder.parent / "cache" / shard.parent.name).glob("*")], "a damaged copy is left"


@pytest.mark.parametrize("store", [first_copies_are_truncated, first_copies_have_a_flipped_byte])
def test_copy_that_was_damaged_on_its_way_is_made_once_more(folder: Path, store: Callable) -> None:
    assert_all_rows_are_read(folder, store)


@pytest.mark.parametrize("store", [first_copies_are_truncated, first_copies_have_a_flipped_byte, fails_three_times])
def test_one_call_gets_over_a_passing_fault(folder: Path, store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs a shard tries again what a thread tried ahead of time; either must do alone."""
    stream = shards.CheckedStream(str(folder), folder.parent / "cache")
    stream.apply_default({"split": "", "download_timeout": 60.0, "keep_zip": False})
    monkeypatch.setattr("streaming.base.util.sleep", lambda seconds: None)
    readers = stream.get_shards(World(1, 1, 1, 0), allow_unsafe_types=False)
    downloader = type(stream._downloader)
    monkeypatch.setattr(downloader, "_download_file_impl", store(downloader._download_file_impl))
    rows = []
    for reader in readers:
        stream.prepare_shard(reader)
        rows += [Concatenation.of(reader, BLOCK_ROWS)([block])[0]["row"] for block in reader]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(ROWS))


def test_store_that_recovers_costs_a_retry_not_the_run(folder: Path) -> None:
    assert_all_rows_are_read(folder, fails_three_times)


@pytest.mark.parametrize("workers", [1, 2])
def test_store_that_stays_away_is_told(folder: Path, workers: int) -> None:
    for error in errors_of(folder, fails_for_good, workers):
        assert error.startswith(f"{folder}/part-")
        assert "cannot be copied to" in error and "the store is away; its store must answer" in error


def empty_the_cache(cache: Path, step: int) -> None:
    if step == 5:
        for part in cache.glob("part-*"):
            shutil.rmtree(part, ignore_errors=True)


@pytest.mark.parametrize(("workers", "loader_workers"), [(1, 0), (2, 0), (1, 2)])
def test_copies_that_vanish_within_an_epoch_are_made_again(folder: Path, workers: int, loader_workers: int) -> None:
    assert_all_rows_are_read(folder, after_step=empty_the_cache, workers=workers, loader_workers=loader_workers)
