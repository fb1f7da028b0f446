"""Preparation end to end: splits, statistics of training rows only, joins, running again, and replacing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.columns import SPLITS
from recsys_ray.config import SplitConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.schema import Categorical, Dense, Label, Timestamp
from tests.support.preparing import clicks, config_for, read_split, write_input

ROWS = 2000


def moments_by_split(dataset: DatasetDirectory) -> dict[str, set[int]]:
    """Returns the `at` of the rows of each split."""
    return {split: set(read_split(dataset.root, split)[0]["at"]) if dataset.split(split) else set() for split in SPLITS}


def test_random_split_repeats_itself(ray_session, tmp_path):
    source = write_input(tmp_path / "in", files=3)
    first = moments_by_split(prepare(config_for(source, out=str(tmp_path / "first"))))
    again = moments_by_split(prepare(config_for(source, out=str(tmp_path / "again"), block_rows=100)))
    assert first == again, "a row changed its split although neither the files nor the seed did"
    assert sum(map(len, first.values())) == ROWS
    assert [len(first[split]) for split in SPLITS] == pytest.approx([0.8 * ROWS, 0.1 * ROWS, 0.1 * ROWS], abs=50)
    thirds = SplitConfig(validation=0.3, test=0.0)
    other = moments_by_split(prepare(config_for(source, out=str(tmp_path / "other"), split=thirds, seed=1)))
    assert len(other["validation"]) == pytest.approx(0.3 * ROWS, abs=70) and not other["test"]
    shared = len(first["validation"] & other["validation"]) / len(first["validation"])
    assert shared < 0.5, "another seed gave the same split"


def test_split_by_time_and_measured_on_training_rows_only(ray_session, tmp_path):
    columns = clicks(ROWS)
    late = columns["at"] >= 1700
    columns["price"] = np.where(late, 1e6, columns["price"])
    columns["city"] = np.where(late, "Late", columns["city"])
    columns["click"] = np.where(columns["at"] == 3, 7, columns["click"])
    columns["price"][columns["at"] == 3] = 1e9
    columns["city"][columns["at"] == 3] = "Bad"
    source = write_input(tmp_path / "in", columns, files=2)
    dataset = prepare(config_for(source, split=SplitConfig(by="time", validation=0.1, test=0.1)))
    at = moments_by_split(dataset)
    assert max(at["train"]) < min(at["validation"]) <= max(at["validation"]) < min(at["test"])
    assert [len(at[split]) for split in SPLITS] == pytest.approx([0.8 * ROWS, 0.1 * ROWS, 0.1 * ROWS], abs=5)

    train = pd.DataFrame({name: columns[name] for name in ("at", "price", "city")}).set_index("at").loc[sorted(at["train"])]
    price = next(column for column in dataset.schema.dense if column.name == "price")
    assert (price.mean, price.std) == pytest.approx((train["price"].mean(), train["price"].std(ddof=0)), rel=1e-9)
    known = load_vocabularies(dataset.root, dataset.schema)["city"].to_pylist()
    assert known == train["city"].value_counts().index.tolist() == ["Rome", "Oslo", "Bern"]
    assert next(column for column in dataset.schema.categorical if column.name == "city").num_embeddings == 4
    assert set(read_split(dataset.root, "test")[0]["city"]) == {0}, "a city never seen in training has a row of its own"

    (tmp_path / "fitted.json").write_text(dataset.schema.to_json())
    again = {"out": str(tmp_path / "again"), "schema": str(tmp_path / "fitted.json")}
    refitted = prepare(config_for(source, **again, split=SplitConfig(by="time")))
    assert refitted.schema == dataset.schema, "the schema of a dataset, used again, is measured anew"


def test_split_by_column(ray_session, tmp_path):
    columns = clicks(300)
    words = np.array(["train", "validation", "test", "hold-out"])[np.arange(300) % 20 // 6]
    source = write_input(tmp_path / "in", pa.table(columns | {"part": pa.array(words).dictionary_encode()}))
    dataset = prepare(config_for(source, split=SplitConfig(by="column", column="part")))
    for split, at in moments_by_split(dataset).items():
        assert at == set(columns["at"][words == split])
    rejected = pq.read_table(dataset.root / "rejected")
    assert set(rejected["at"].to_pylist()) == set(columns["at"][words == "hold-out"])
    assert set(rejected["reason"].to_pylist()) == {"part: split is not train, validation or test"}


def test_users_and_items_are_joined(ray_session, tmp_path):
    schema = (
        Label("click"),
        Categorical("user_id", "user", num_embeddings=1000),
        Categorical("country", "user", dtype="string", encoding="vocabulary"),
        Dense("age", "user", fill=-1.0),
        Categorical("genres", "item", encoding="identity", num_embeddings=12, multi=True),
        Timestamp("at"),
    )
    users = [0, 1, 2, 99, None, 1]
    events = {"click": [1, 0, 1, 0, 1, 1], "user_id": pa.array(users, pa.float64()), "movie": ["a", "b", "a", "?", "b", None]}
    source = write_input(tmp_path / "in", events | {"at": range(6)}, schema)
    country, age = ["FR", "DE", "IT", "XX"], [2, 0, 1, 9]
    people = pa.table({"user_id": pa.array([2, 0, 1, None], pa.int32()), "country": country, "age": age})
    movies = pa.table({"movie": pa.array(["b", "a"], pa.large_string()).dictionary_encode(), "genres": [[7], [1, 2]]})
    pq.write_table(people, tmp_path / "users.parquet")
    pq.write_table(movies, tmp_path / "items.parquet")
    tables = {"users": str(tmp_path / "users.parquet"), "items": str(tmp_path / "items.parquet"), "item_key": "movie"}
    dataset = prepare(config_for(source, **tables, split=SplitConfig(validation=0, test=0)))
    rows = read_split(dataset.root, "train")[0].set_index("at").sort_index()
    known = [None, *load_vocabularies(dataset.root, dataset.schema)["country"].to_pylist()]
    assert [known[row] for row in rows["country"]] == ["DE", "IT", "FR", None, None, "IT"]
    assert rows["age"].tolist() == [0, 1, 2, -1, -1, 1]
    assert [genres.tolist() for genres in rows["genres"]] == [[2, 3], [8], [2, 3], [0], [8], [0]]
    assert (rows["user_id"] == 0).tolist() == [False, False, False, False, True, False], "an unknown user keeps its own hash"

    pq.write_table(pa.concat_tables([people, people.slice(1, 1)]), tmp_path / "users.parquet")
    with pytest.raises(ValueError, match=r"users.parquet: user_id 0 is there 2 times: wants one row for each user_id"):
        prepare(config_for(source, **tables, out=str(tmp_path / "other")))
    assert not list(tmp_path.glob("*other*"))


def test_running_again_and_replacing(ray_session, tmp_path, capsys, monkeypatch):
    source = write_input(tmp_path / "in")
    dataset = prepare(config_for(source))
    written = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}
    capsys.readouterr()
    assert prepare(config_for(source)).summary == dataset.summary
    assert "is up to date with its inputs" in (said := capsys.readouterr().out) and "nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")} == written

    for change in ({"seed": 1}, {"block_rows": 32}, {"split": SplitConfig(test=0.2)}):
        with pytest.raises(FileExistsError, match="was prepared from other inputs or settings: pass --overwrite"):
            prepare(config_for(source, **change))
    write_input(source, clicks(900, seed=1))
    with pytest.raises(FileExistsError, match="pass --overwrite to replace it"):
        prepare(config_for(source))

    with Watch(dataset.root) as watch, monkeypatch.context() as patch:
        # Were it moved away and the new one moved in, this would leave a reader time to see the gap.
        rename = Path.rename
        patch.setattr(Path, "rename", lambda path, to: (rename(path, to), time.sleep(0.1)))
        replaced = prepare(config_for(source, overwrite=True))
    assert not watch.faults and watch.seen == {2000, 900}, watch.faults[:1]
    assert replaced.summary["rows_in"] == 900 and [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Watch:
    """A thread that opens a dataset directory again and again, as a reader would, and keeps what goes wrong."""

    def __init__(self, root: Path) -> None:
        self.root, self.faults, self.seen = root, [], set()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.0005):
            try:
                dataset = DatasetDirectory.open(self.root)
                assert all(dataset.split(split) for split in SPLITS), "a split is missing"
                self.seen.add(dataset.summary["rows_in"])
            except Exception as error:
                self.faults.append(repr(error))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_missing_and_null_ids_of_every_kind(ray_session, tmp_path):
    """Nulls are not rejected; they select row 0, which stands for missing values."""
    columns = clicks(200)
    nulls = np.arange(200) % 4 == 0
    table = pa.table(columns)
    for name in ("user", "city", "tags", "price"):
        values = pa.array(columns[name]).to_pylist()
        kept = pa.array([None if null else value for value, null in zip(values, nulls, strict=True)], table[name].type)
        table = table.set_column(table.column_names.index(name), name, kept)
    dataset = prepare(config_for(write_input(tmp_path / "in", table), split=SplitConfig(validation=0, test=0)))
    rows = read_split(dataset.root, "train")[0]
    missing = rows["at"].isin(columns["at"][nulls])
    assert len(rows) == 200 and dataset.summary["rejected"] == 0 and missing.sum() == nulls.sum()
    assert ((rows["user"] == 0) == missing).all() and ((rows["city"] == 0) == missing).all()
    assert (rows["price"][missing] == 0).all() and all(tags.tolist() == [0] for tags in rows["tags"][missing])
    for name in ("user", "city", "tags", "price"):
        assert dataset.summary["columns"][name]["missing_rate"] == 0.25
    assert dataset.summary["columns"]["city"]["cardinality"] == 3
