"""The parts of batch inference, without an engine: ranges of rows, buckets of users, what is seen, and the resumable output."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys_ray.command_line import JobError
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.schema import Categorical
from recsys_ray.serving.batch.partitioned.output import BatchManifest, BatchOutput, BatchResult
from recsys_ray.serving.batch.partitioned.row_ranges import RowRange, read_rows, row_ranges
from recsys_ray.serving.batch.recommending import user_buckets
from recsys_ray.serving.batch.recommending.seen_items import SEEN, InteractionColumns, with_history, with_seen
from recsys_ray.serving.batch.recommending.user_buckets import BucketedTable, missing_ranges, write_range
from recsys_ray.serving.recommender.candidates import largest

pytestmark = pytest.mark.unit
USER, ITEM = Categorical("user", "user", "string"), Categorical("item", "item")


def write_files(folder: Path, table: pa.Table, sizes: list[int], row_group: int = 7) -> None:
    folder.mkdir()
    for number, size in enumerate(sizes):
        pq.write_table(table.slice(sum(sizes[:number]), size), folder / f"{number}.parquet", row_group_size=row_group)


def test_the_largest_products_are_those_of_topk() -> None:
    """Among ties, items that are barred, users who may have few items or none, and a model that has diverged."""
    random = torch.Generator().manual_seed(0)
    products = torch.randn(9, 5003, generator=random)
    products[1] = products[1].round()
    products[2, torch.rand(5003, generator=random) < 0.5] = -torch.inf
    products[3, 40:] = -torch.inf
    products[4] = -torch.inf
    products[5] = products[5].sort().values
    products[6] = products[6].sort(descending=True).values
    for n in (1, 50, 300):
        found = largest(products, n)
        np.testing.assert_array_equal(found.scores, products.topk(n).values.numpy())
        there = np.isfinite(found.scores)
        assert np.array_equal(np.take_along_axis(products.numpy(), found.positions, 1)[there], found.scores[there])
        assert all(len(np.unique(row[kept])) == kept.sum() for row, kept in zip(found.positions, there, strict=True))
        nothing = largest(torch.full((2, 5003), torch.nan), n).scores
        assert not np.isfinite(nothing).any()


def test_ranges_cover_every_row_once_whatever_the_row_groups(tmp_path: Path) -> None:
    table = pa.table({"n": range(50), "text": pa.array([str(n) for n in range(50)]).dictionary_encode()})
    write_files(tmp_path / "rows", table, [20, 0, 3, 27])
    files = find_parquet(str(tmp_path / "rows"))
    for size in (1, 6, 13, 49, 50, 1000):
        ranges = row_ranges(files.rows, size)
        assert len(ranges) == -(-50 // size) and max(stop - first for first, stop in ranges) <= size
        parts = [pa.concat_tables(read_rows(files, one, ["text", "n"])) for one in ranges]
        assert pa.concat_tables(parts)["n"].to_pylist() == list(range(50))
        assert pa.concat_tables(parts)["text"].to_pylist() == table["text"].to_pylist()
    (nothing,) = read_rows(files, RowRange(0, 0), ["n"])
    assert nothing.num_rows == 0 and row_ranges(0, 10) == [(0, 0)]


def test_buckets_bring_the_same_user_together_from_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is the same user as a dictionary of text, rows keep their order, and nothing is lost, nulls included."""
    monkeypatch.setattr(user_buckets, "ROWS_PER_RANGE", 30)
    random = np.random.default_rng(0)
    names = np.array([f"user {n}" for n in range(40)])
    users = pa.table({"user": pa.array([*names, None]), "age": range(41)})
    clicks = pa.table({"user": pa.array(random.choice(names, 100)).dictionary_encode(), "item": range(100)})
    write_files(tmp_path / "users", users, [41])
    write_files(tmp_path / "clicks", clicks, [60, 40])
    tables = [
        BucketedTable(find_parquet(str(tmp_path / name)), tuple(table.column_names), USER, tmp_path / f"{name}.buckets", 6)
        for name, table in (("users", users), ("clicks", clicks))
    ]
    assert missing_ranges(tables) == [0, 1, 2, 3, 4, 5]
    for number in (5, 0, 3):
        write_range(tables, number)
    assert missing_ranges(tables) == [1, 2, 4]
    for number in (1, 2, 4):
        write_range(tables, number)
    parts = [[table.read(bucket) for bucket in range(6)] for table in tables]
    for whole, found in zip((users, clicks), parts, strict=True):
        key = whole.column_names[1]
        assert sorted(pa.concat_tables(found)[key].to_pylist()) == whole[key].to_pylist()
        assert all(part[key].to_pylist() == sorted(part[key].to_pylist()) for part in found)
    for of_users, of_clicks in zip(*parts, strict=True):
        assert set(of_clicks["user"].to_pylist()) <= set(of_users["user"].to_pylist())
    assert len([part for part in parts[0] if part.num_rows]) > 3


def test_what_a_user_has_seen_is_listed_latest_first() -> None:
    users = pa.table({"user": ["b", "a", None, "nobody", "b"]})
    clicks = pa.table({"user": ["a", "b", "b", "stranger", None, "a", "b"], "item": [1, 2, 3, 4, 5, 6, None],
                       "at": [9, 1, 1, 0, 0, 2, 7]})  # fmt: skip
    seen = with_seen(users, clicks, InteractionColumns(USER, ITEM, "at"))
    assert seen[SEEN].to_pylist() == [[3, 2], [1, 6], None, [], [3, 2]], "a later row counts as later at the same time"
    assert with_history(seen, "recent", 1)["recent"].to_pylist() == [[3], [1], None, [], [3]]
    in_order = with_seen(users, clicks.drop_columns(["at"]), InteractionColumns(USER, ITEM, ""))
    assert in_order[SEEN].to_pylist() == [[3, 2], [6, 1], None, [], [3, 2]]


def output(folder: Path, **made_from: str) -> BatchOutput:
    return BatchOutput(folder / "out", BatchManifest("score", {"--model": "a", "--rows": "b", **made_from}, 3))


def results(number: int) -> list[BatchResult]:
    return [BatchResult(pa.table({"n": pa.array([number] * rows, pa.int64())}), {"seen": rows}) for rows in (2, 0, number)]


def test_an_output_appears_when_it_is_whole_and_is_kept_until_then(tmp_path: Path) -> None:
    first = output(tmp_path)
    assert first.begin(overwrite=False) and first.missing() == [0, 1, 2]
    first.write(1, results(1))
    with pytest.raises(RuntimeError, match="stopped"):
        first.write(2, stopped())
    assert first.begin(overwrite=False) and first.missing() == [0, 2] and not first.out.exists()
    assert {path.name for path in first.work.iterdir()} == {"_manifest.json", "_scratch", "part-00001.parquet"}
    finish(first)
    assert first.finished_counts() == {"rows": 9, "seen": 9} and not first.begin(overwrite=False)
    assert Counter(pq.read_table(first.out)["n"].to_pylist()) == {0: 2, 1: 3, 2: 4}

    other = output(tmp_path, **{"--model": "c", "--extra": "d"})
    with pytest.raises(FileExistsError, match=r"out was made with other values \(--model, --extra\): pass --overwrite"):
        other.begin(overwrite=False)
    assert other.begin(overwrite=True) and first.finished_counts() == {"rows": 9, "seen": 9}, "the old one stays until then"
    other.write(0, results(5))
    assert other.begin(overwrite=True) and other.missing() == [1, 2], "an interrupted replacement goes on as well"
    finish(other)
    assert other.finished_counts()["rows"] == 7 + 3 + 4 and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_files_are_a_delta_table_too(tmp_path: Path) -> None:
    """Types that Delta does not have leave the job where it can go on as Parquet."""
    deltalake = pytest.importorskip("deltalake")
    delta = dataclasses.replace(output(tmp_path), delta=True)
    delta.begin(overwrite=False)
    finish(delta)
    assert sorted(deltalake.DeltaTable(delta.out).to_pyarrow_table()["n"].to_pylist()) == [0, 0, 1, 1, 1, 2, 2, 2, 2]

    strange = dataclasses.replace(output(tmp_path / "strange"), delta=True)
    strange.begin(overwrite=False)
    for number in strange.missing():
        strange.write(number, [BatchResult(pa.table({"time": pa.array([number], pa.time64("ns"))}), {})])
    with pytest.raises(JobError, match=r"cannot become a Delta table \(.*Time64.*\): run again with --format parquet"):
        strange.publish(strange.counts())
    plain = dataclasses.replace(strange, delta=False)
    assert plain.begin(overwrite=False) and plain.missing() == []
    plain.publish(plain.counts())


def finish(one: BatchOutput) -> None:
    for number in one.missing():
        one.write(number, results(number))
    one.publish(one.counts())


def stopped():
    yield results(1)[0]
    raise RuntimeError("stopped")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_SUCCESS").write_text(json.dumps({"by": "Spark"}))
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is no output of this job, so it is left alone: choose another --out"):
            output(tmp_path).begin(overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_SUCCESS"]
