"""Preparation on Spark writes the same dataset directory as on Ray Data, from Parquet and tables, even if a task is killed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from recsys_ray.columns import SPLITS
from recsys_ray.config import DataConfig, PrepareConfig, SplitConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.engines.spark import engine as spark_engine
from recsys_ray.data.loading.stream import BlockStream, batch_layout
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.schema import Categorical, Dense, Label, Timestamp
from tests.support.faulty_engine import one_writer_killed
from tests.support.preparing import clicks, config_for, read_split, write_input
from tests.support.workers import run_workers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 3000
SCHEMA = (
    Label("click"),
    Dense("price", scale="standard"),
    Dense("age", "user", scale="standard"),
    Categorical("user_id", "user", num_embeddings=1000),
    Categorical("country", "user", dtype="string", encoding="vocabulary"),
    Categorical("item_id", "item", encoding="identity", num_embeddings=102),
    Categorical("genres", "item", dtype="string", encoding="vocabulary", multi=True),
    Categorical("tags", num_embeddings=500, multi=True),
    Timestamp("at"),
)


@pytest.fixture(scope="module")
def spark_master() -> str:
    return "local[2,4]"  # 4: a task may fail three times


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    """Writes bad rows, nulls, ids unknown to the users' table, and what Spark's own reader would not read.

    The latter are nanoseconds, unsigned numbers, a column of nulls only, a folder that looks like a column, and a file name that
    looks like a pattern.
    """
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("source")
    columns = clicks(ROWS) | {"user_id": pa.array(random.integers(0, 60, ROWS), pa.uint64())}
    columns["click"] = np.where(np.arange(ROWS) % 50 == 7, 2, columns["click"])
    columns["price"] = np.where(np.arange(ROWS) % 9 == 0, np.nan, 1e9 + columns["price"])
    columns["item_id"] = pa.array([None if n % 11 == 0 else n % 100 for n in range(ROWS)])
    columns["at"] = pa.array(columns["at"] * 1_000_000_007, pa.timestamp("ns"))
    columns |= {"city": pa.array(columns["city"]).dictionary_encode(), "note": pa.nulls(ROWS)}
    write_input(folder / "in", pa.table(columns), SCHEMA, files=3)
    (folder / "in" / "click=1").mkdir()
    (folder / "in" / "2.parquet").rename(folder / "in" / "click=1" / "a b[2].parquet")
    users = {"user_id": range(50), "age": random.normal(40, 9, 50), "country": random.choice(["FR", "DE", "IT"], 50)}
    items = {"item_id": range(100), "genres": [random.choice(["a", "b", "c"], n % 3).tolist() for n in range(100)]}
    pq.write_table(pa.table(users), folder / "users.parquet")
    pq.write_table(pa.table(items), folder / "items.parquet")
    tables = {name: str(folder / f"{name}.parquet") for name in ("users", "items")}
    return config_for(folder / "in", **tables, split=SplitConfig(by="time"), overwrite=True)


def prepared(config: PrepareConfig, engine: str, out: Path, **settings: object) -> DatasetDirectory:
    return prepare(dataclasses.replace(config, engine=engine, out=str(out), **settings))


def rows_of(dataset: DatasetDirectory, split: str) -> pd.DataFrame:
    """Returns rows as written, with lists as text, and checks that every block but the last is full."""
    rows, blocks = read_split(dataset.root, split)
    full, rest = divmod(len(rows), dataset.summary["block_rows"])
    assert sorted(blocks, reverse=True) == [dataset.summary["block_rows"]] * full + [rest] * (rest > 0), "a block is short"
    return rows.map(lambda value: str(value.tolist()) if isinstance(value, np.ndarray) else value)


def assert_same_rows(left: DatasetDirectory, right: DatasetDirectory) -> None:
    for split in SPLITS:
        ours, theirs = (rows_of(dataset, split).sort_values("at", ignore_index=True) for dataset in (left, right))
        pd.testing.assert_frame_equal(ours, theirs)


def rejected_rows(dataset: DatasetDirectory) -> pa.Table:
    return pq.read_table(dataset.root / "rejected").sort_by("at")


@pytest.fixture(scope="module")
def on_ray(source: PrepareConfig, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetDirectory]:
    """Prepares the source on Ray Data, by each kind of split."""
    folder = tmp_path_factory.mktemp("ray")
    return {by: prepared(source, "ray", folder / by, split=SplitConfig(by=by)) for by in ("random", "time")}


@pytest.mark.parametrize(("by", "merged_at_once"), [("random", 8), ("time", 1)])
def test_same_dataset_as_ray(by, merged_at_once, source, on_ray, spark_session, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spark_engine, "MERGED_AT_ONCE", merged_at_once)
    on_ray, on_spark = on_ray[by], prepared(source, "spark", tmp_path / "spark", split=SplitConfig(by=by))
    for name in ("schema.json", "summary.json"):
        assert (on_ray.root / name).read_text() == (on_spark.root / name).read_text()
    assert on_spark.summary["rejected"] == 60 and on_spark.summary["rows_in"] == ROWS
    vocabularies = [load_vocabularies(dataset.root, dataset.schema) for dataset in (on_ray, on_spark)]
    assert vocabularies[0] == vocabularies[1] and set(vocabularies[0]) == {"country", "genres"}
    assert_same_rows(on_ray, on_spark)
    assert rejected_rows(on_ray).schema == rejected_rows(on_spark).schema
    pd.testing.assert_frame_equal(rejected_rows(on_ray).to_pandas(), rejected_rows(on_spark).to_pandas())
    capsys.readouterr()
    prepared(source, "spark", on_ray.root, split=SplitConfig(by=by))
    assert "is up to date with its inputs" in capsys.readouterr().out, "one engine does not know what the other made"


@pytest.fixture
def views(source: PrepareConfig, spark_session: SparkSession) -> PrepareConfig:
    """Registers the same rows as views of the session; Spark has no unsigned or dictionary types, and microseconds only."""
    folder, views = Path(source.parquet), {}
    table = find_parquet(source.parquet).read(["click", "price", "user_id", "item_id", "tags", "at"])
    types = {"user_id": pa.decimal128(20, 0), "at": pa.timestamp("us", "Asia/Tokyo")}
    kept = [table[name].cast(types.get(name, table[name].type), safe=False) for name in table.column_names]
    table = pa.table(dict(zip(table.column_names, kept, strict=True)))
    for name, rows in (("parquet", table), *((name, pq.read_table(getattr(source, name))) for name in ("users", "items"))):
        spark_session.createDataFrame(rows).createOrReplaceTempView(f"{name}_view")
        views[name] = f"table:{name}_view"
    return dataclasses.replace(source, **views, schema=str(folder / "schema.json"))


def test_tables_and_views(views, on_ray, spark_session, tmp_path, capsys):
    of_views, of_files = prepared(views, "spark", tmp_path / "views"), on_ray["time"]
    assert (of_files.root / "schema.json").read_text() == (of_views.root / "schema.json").read_text()
    assert of_files.summary | {"fingerprint": ""} == of_views.summary | {"fingerprint": ""}
    assert_same_rows(of_files, of_views)
    assert rejected_rows(of_views).num_rows == 60
    capsys.readouterr()
    prepared(views, "spark", tmp_path / "views")
    assert "nothing to do" in capsys.readouterr().out
    spark_session.table("parquet_view").limit(ROWS - 1).createOrReplaceTempView("parquet_view")
    with pytest.raises(FileExistsError, match="was prepared from other inputs"):
        prepared(views, "spark", tmp_path / "views", overwrite=False)
    by_chance = SplitConfig(validation=0.3, test=0.0)
    rows = prepared(views, "spark", tmp_path / "chance", split=by_chance).summary["rows"]
    assert rows["validation"] == pytest.approx(0.3 * 2940, abs=80) and sum(rows.values()) in (2939, 2940)


def read_stream(dataset: str, out: str) -> None:
    dist.init_process_group("gloo")
    layout = batch_layout(512, 256, 1)
    stream = BlockStream(f"{dataset}/train", Path(out) / "cache", layout, seed=0, shuffle=True, config=DataConfig(), weight="")
    np.save(Path(out) / "stream.npy", np.concatenate([columns["number"].numpy() for columns in stream]))
    dist.destroy_process_group()


def test_a_killed_writer_and_a_global_shuffle(spark_session, tmp_path):
    rows, schema = 300_000, (Label("click"), Dense("price"), Categorical("user", num_embeddings=1000), Timestamp("number"))
    numbers = np.arange(rows)
    columns = {"click": numbers % 2, "price": numbers / rows, "user": numbers % 999, "number": numbers}
    source = write_input(tmp_path / "in", columns, schema, files=8)
    killed = tmp_path / "killed"
    dataset = prepare(config_for(source, block_rows=256), one_writer_killed("spark", killed))
    assert killed.exists(), "no writer was killed"
    found = [rows_of(dataset, split) for split in SPLITS]
    for frame in found:
        assert (frame["price"].to_numpy() == (frame["number"] / rows).to_numpy(np.float32)).all(), "rows were torn apart"
    assert np.array_equal(np.sort(np.concatenate([frame["number"] for frame in found])), numbers), "a row is lost or twice there"
    parts = [folder.name for folder in (dataset.root / "train").glob("part-*")]
    assert len(parts) == 5 and killed.read_text() not in parts, "what the killed attempt wrote is still there"
    train = found[0]["number"].to_numpy()
    blocks = train[: len(train) // 256 * 256].reshape(-1, 256)
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.01, "rows are not shuffled globally"
    assert (np.ptp(blocks, axis=1) > 0.8 * rows).all(), "a block holds the rows of one place"
    run_workers(read_stream, 1, str(dataset.root), str(tmp_path))
    assert set(np.load(tmp_path / "stream.npy")) - {0} == set(train) - {0}
