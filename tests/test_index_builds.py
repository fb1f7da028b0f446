"""Tests builds of an index that meet others: one at a time, nothing lost, and only what the index wrote itself is dropped."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from recsys_ray.locks import LockHeldError, LockLostError
from recsys_ray.serving.index import open_index
from recsys_ray.serving.index.lance_tables import lance_tables
from recsys_ray.serving.index.manifest import read_manifest
from recsys_ray.serving.index.vector_index import index_backend
from tests.test_index import batches, ids, source, vectors

pytestmark = pytest.mark.unit


@pytest.fixture(params=["", "faiss:"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}"


def build(uri: str, rows: int, before_the_last: Callable[[], object] = lambda: None) -> str:
    """Builds an index of so many items; calls a function before it reads the last of them."""

    def interrupted() -> Iterator[pa.RecordBatch]:
        *first, last = batches(vectors(rows))
        yield from first
        before_the_last()
        yield last

    return index_backend(uri).write_index(uri, dataclasses.replace(source(vectors(1)), batches=interrupted()))


def items(uri: str) -> int:
    return len(ids(open_index(uri, "v1").search(vectors(1), 1000)[0]))


def tables(folder: Path) -> set[str]:
    return {path.name.removesuffix(".lance") for path in folder.iterdir() if path.is_dir()}


def test_a_second_build_is_refused_and_the_first_ends_well(uri: str) -> None:
    begun, go_on = threading.Event(), threading.Event()
    first = threading.Thread(target=build, args=(uri, 30, lambda: (begun.set(), go_on.wait(60))))
    first.start()
    assert begun.wait(60)
    with pytest.raises(LockHeldError, match=r"build\.lock is held by process \d+ .*wait until it ends"):
        build(uri, 20)
    go_on.set()
    first.join()
    assert items(uri) == 30
    build(uri, 20)
    assert items(uri) == 20


def test_a_build_that_was_taken_over_publishes_nothing(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A paused build looks dead; another one takes over and is served; the first ends with an error, and leaves nothing."""
    build(uri, 10)

    def take_over() -> None:
        (lock,) = tmp_path.glob("build.lock*")
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "renewed_at": 0.0}))
        build(uri, 20)

    with pytest.raises((LockLostError, FileNotFoundError, ValueError, RuntimeError)):
        build(uri, 30, before_the_last=take_over)
    assert "is taken over from process" in capsys.readouterr().out
    manifest = read_manifest(str(tmp_path))
    assert items(uri) == 20 and manifest is not None
    assert tables(tmp_path) == {manifest.table, manifest.previous} and not list(tmp_path.glob("build.lock*"))


def test_what_a_killed_build_left_behind_is_dropped_by_the_next(uri: str, tmp_path: Path) -> None:
    build(uri, 10)
    left = "items_v1_0123abcd"
    lance_tables(str(tmp_path)).create(left, pa.table({"x": [1]}).to_reader())
    if uri.startswith("faiss:"):
        (tmp_path / f"{left}.lance").rename(tmp_path / left)
    owner = {"token": "t", "host": "elsewhere", "process": 1, "holding": left, "renewed_at": 0.0}
    (tmp_path / "build.lock.1").write_text(json.dumps(owner))
    build(uri, 20)
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None and tables(tmp_path) == {manifest.table, manifest.previous}


def test_tables_of_others_survive(uri: str, tmp_path: Path) -> None:
    """Also one whose name this index could have chosen, and one that a broken manifest claims."""
    others = {"sales", "items_v1_89abcdef"}
    for name in others:
        lance_tables(str(tmp_path)).create(name, pa.table({"x": [1]}).to_reader())
    for rows in (10, 20, 30, 40):
        build(uri, rows)
        manifest = read_manifest(str(tmp_path))
        assert manifest is not None
        claimed = {**dataclasses.asdict(manifest), "previous": "sales", "written": ["sales", "../sales"]}
        (tmp_path / "index.json").write_text(json.dumps(claimed))
    assert tables(tmp_path) >= {*others, manifest.table, manifest.previous}
    assert lance_tables(str(tmp_path)).open("sales").count_rows() == 1
