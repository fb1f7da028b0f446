"""A dataset that grows from yesterday's: each value keeps its table row, each column its scale, and new values follow."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.config import PrepareConfig, SplitConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue, load_vocabularies
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.schema import Categorical, Column, Dense, Label, Timestamp
from tests.support.preparing import config_for, read_split, write_input

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CITY = Categorical("city", dtype="string", encoding="vocabulary")
SCHEMA: tuple[Column, ...] = (
    Label("click"),
    Dense("price", scale="standard"),
    Dense("weight_kg", scale="standard"),
    Categorical("shop", "user", encoding="identity", num_embeddings=50),
    CITY,
    Categorical("item", "item", encoding="vocabulary", key=True),
    Categorical("recent", "user", encoding="vocabulary", table="item", multi=True),
    Categorical("tags", "item", dtype="string", num_embeddings=1000, multi=True),
    Timestamp("at"),
)
TODAYS: tuple[Column, ...] = (
    *SCHEMA,
    Categorical("device", dtype="string", encoding="vocabulary"),
    Dense("discount", scale="standard"),
)
YESTERDAY = {"Rome": 5, "Oslo": 3, "Bern": 2}
TODAY = {"Oslo": 1, "Paris": 4, "Kyiv": 4, "Lima": 6, "Bonn": 1}
"""Oslo returns; Rome and Bern have vanished."""
GROWN = ["Rome", "Oslo", "Bern", "Lima", "Kyiv", "Paris", "Bonn"]


def day(cities: dict[str, int], first_item: int, price: float, weight: float | None) -> dict[str, Any]:
    """Returns training rows with these cities, and two of validation: one with a city of yesterday, one with an unknown city."""
    names = [name for name, count in cities.items() for _ in range(count)] + ["Rome", "Nowhere"]
    rows = np.arange(len(names))
    return {
        "click": rows % 2,
        "price": price + rows,
        "weight_kg": pa.array([weight and weight * row for row in rows], pa.float64()),
        "shop": rows % 7,
        "city": names,
        "item": first_item + rows % 4,
        "recent": [[first_item + 4] * (row % 3) for row in rows],
        "tags": [[f"tag {row % 5}"] for row in rows],
        "at": rows,
        "device": np.where(rows % 3, "phone", "desk"),
        "discount": rows * 0.5,
        "part": ["train"] * (len(names) - 2) + ["validation"] * 2,
    }


def config_of(folder: Path, schema: tuple[Column, ...], columns: dict[str, Any], **settings: Any) -> PrepareConfig:
    return config_for(write_input(folder, columns, schema), split=SplitConfig(by="column", column="part"), **settings)


@pytest.fixture(scope="module")
def yesterday(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> DatasetDirectory:
    folder = tmp_path_factory.mktemp("yesterday")
    return prepare(config_of(folder / "in", SCHEMA, day(YESTERDAY, 100, 10.0, None)))


def growing(yesterday: DatasetDirectory, folder: Path) -> PrepareConfig:
    """Writes the rows of today into a folder, and returns the settings that prepare them."""
    return config_of(folder / "in", TODAYS, day(TODAY, 102, 5000.0, 3.0), grow_from=str(yesterday.root))


@pytest.fixture
def today(yesterday: DatasetDirectory, tmp_path: Path) -> PrepareConfig:
    return growing(yesterday, tmp_path)


@pytest.fixture(scope="module")
def grown_from(yesterday: DatasetDirectory, tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    """The settings of `grown`."""
    return growing(yesterday, tmp_path_factory.mktemp("today"))


@pytest.fixture(scope="module")
def grown(grown_from: PrepareConfig) -> DatasetDirectory:
    """The dataset of today, for tests that only read it."""
    return prepare(grown_from)


def with_column(config: PrepareConfig, changed: Column) -> PrepareConfig:
    schema = tuple(changed if column.name == changed.name else column for column in TODAYS)
    write_input(Path(config.parquet), day(TODAY, 102, 5000.0, 3.0), schema)
    return config


def vocabularies(dataset: DatasetDirectory) -> dict[str, list[Any]]:
    return {name: values.to_pylist() for name, values in load_vocabularies(dataset.root, dataset.schema).items()}


def files_of(dataset: DatasetDirectory) -> dict[str, bytes]:
    """Returns all files but the shards, whose rows are compared where they matter."""
    files = [path for path in dataset.root.rglob("*") if path.suffix in (".json", ".parquet") and path.name != "index.json"]
    return {str(path.relative_to(dataset.root)): path.read_bytes() for path in files}


def column(dataset: DatasetDirectory, name: str) -> Any:
    return next(one for one in dataset.schema.columns if one.name == name)


def test_old_rows_stay_and_new_values_follow_by_frequency(yesterday, today, capsys):
    assert vocabularies(yesterday) == {"city": ["Rome", "Oslo", "Bern"], "item": [104, 100, 101, 102, 103]}
    grown = prepare(today)
    # Of items: 102, 103 and 104 return, 106 (the recent one) is the most frequent of the new, then 105.
    assert vocabularies(grown) == {"city": GROWN, "item": [104, 100, 101, 102, 103, 106, 105], "device": ["phone", "desk"]}
    sizes = {one.name: one.num_embeddings for one in grown.schema.categorical}
    assert sizes == {"shop": 50, "city": 8, "item": 8, "recent": 8, "tags": 1000, "device": 3}
    values = {"city": {"had": 3, "has": 7}, "item": {"had": 5, "has": 7}, "device": {"had": 0, "has": 2}}
    found = grown.summary["grew_from"]
    assert found == {"path": str(yesterday.root), "fingerprint": yesterday.summary["fingerprint"], "values": values}
    assert "grew_from" not in yesterday.summary
    said = capsys.readouterr().out
    assert "table 'city' had 3 values and has 7\n" in said, said
    assert set(load_catalogue(grown)["item"].to_pylist()) == {102, 103, 104, 105}, "the catalogue is that of today alone"


def test_blocks_are_encoded_with_the_grown_vocabulary(grown, today):
    columns = day(TODAY, 102, 5000.0, 3.0)
    known = {name: [None, *values] for name, values in vocabularies(grown).items()}
    rows = read_split(grown.root, "train")[0].set_index("at").sort_index()
    assert [known["city"][row] for row in rows["city"]] == columns["city"][:-2]
    assert [known["item"][row] for row in rows["item"]] == columns["item"][:-2].tolist()
    assert [[known["item"][row] for row in recent] for recent in rows["recent"]] == [
        one or [None] for one in columns["recent"][:-2]
    ]
    validation = read_split(grown.root, "validation")[0].set_index("at").sort_index()
    assert validation["city"].tolist() == [1, 0], "Rome keeps the row of yesterday, unseen today; Nowhere is in no vocabulary"

    alone = prepare(dataclasses.replace(today, grow_from="", out=f"{today.out}-alone"))
    fresh = read_split(alone.root, "train")[0].set_index("at").sort_index()
    for name in ("shop", "tags", "discount", "click"):
        assert rows[name].map(str).tolist() == fresh[name].map(str).tolist(), f"{name} is another column for having grown"


def test_standardised_columns_keep_their_scale(yesterday, grown):
    """A price keeps yesterday's mean and deviation; a column without a value yesterday is measured today."""
    columns = day(TODAY, 102, 5000.0, 3.0)
    price = column(yesterday, "price")
    assert price.mean == np.mean(day(YESTERDAY, 100, 10.0, None)["price"][:-2]) == 14.5
    assert column(grown, "price") == price
    rows = read_split(grown.root, "train")[0].set_index("at").sort_index()
    assert rows["price"].tolist() == pytest.approx(((columns["price"][:-2] - price.mean) / price.std).tolist())
    assert (column(yesterday, "weight_kg").mean, column(yesterday, "weight_kg").std) == (0.0, 1.0)
    for name in ("weight_kg", "discount"):
        train = np.array(columns[name].tolist()[:-2])
        assert (column(grown, name).mean, column(grown, name).std) == pytest.approx((train.mean(), train.std()))


def test_day_after_day(yesterday, grown, tmp_path):
    """A value that is missing for a day returns to its table row; a value that was new yesterday is old today."""
    second = str(shutil.copytree(grown.root, tmp_path / "second"))
    cities = {"Quito": 3, "Bern": 2, "Lima": 1}
    third = config_of(tmp_path / "third", TODAYS, day(cities, 104, 0.0, 3.0), grow_from=second, out=str(tmp_path / "tomorrow"))
    tomorrow = prepare(third)
    assert vocabularies(tomorrow)["city"] == [*GROWN, "Quito"] and column(tomorrow, "price") == column(yesterday, "price")
    assert tomorrow.summary["grew_from"]["values"]["city"] == {"had": 7, "has": 8}
    rows = read_split(tomorrow.root, "train")[0].set_index("at").sort_index()
    assert rows["city"].tolist() == [8, 8, 8, 3, 3, 4]

    replaced = prepare(dataclasses.replace(third, out=second, overwrite=True))
    assert vocabularies(replaced) == vocabularies(tomorrow), "a dataset may take the place of the one it grew from"


def test_limits_are_those_of_new_values(yesterday, today, capsys):
    limited = with_column(today, dataclasses.replace(CITY, num_embeddings=6))
    assert vocabularies(prepare(limited))["city"] == GROWN[:5]
    assert "table 'city' had 3 values and has 5, all that num_embeddings 6 leaves room for" in capsys.readouterr().out
    full = dataclasses.replace(with_column(today, dataclasses.replace(CITY, num_embeddings=4)), overwrite=True)
    assert vocabularies(prepare(full))["city"] == GROWN[:3]
    rare = with_column(full, dataclasses.replace(CITY, min_frequency=5))
    assert vocabularies(prepare(rare))["city"] == ["Rome", "Oslo", "Bern", "Lima"], (
        "Bern is rarer than that, but was kept yesterday"
    )


REFUSED = {
    "encoding": (
        dataclasses.replace(CITY, encoding="hash", num_embeddings=100),
        r"table 'city': encoding is 'hash' in the schema but 'vocabulary' in --grow-from .*start anew under another name",
    ),
    "dtype": (
        Categorical("city", dtype="int", encoding="vocabulary"),
        r"table 'city': dtype is 'int' in the schema but 'string' in --grow-from .*so its values would change rows",
    ),
    "hash size": (
        Categorical("tags", "item", dtype="string", num_embeddings=500, multi=True),
        r"table 'tags': num_embeddings is 500 in the schema but 1000 in --grow-from",
    ),
    "room": (
        dataclasses.replace(CITY, num_embeddings=3),
        r"table 'city': num_embeddings 3 in the schema leaves room for 2 values, but --grow-from .* has 3 and drops none: say 4",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_tables_that_cannot_grow_are_refused_before_anything_is_written(yesterday, today, tmp_path, change):
    changed, words = REFUSED[change]
    with pytest.raises(ValueError, match=words):
        prepare(with_column(today, changed))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_no_dataset_or_a_damaged_one_is_refused(yesterday, today, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a dataset directory \(no summary.json\)"):
        prepare(dataclasses.replace(today, grow_from=str(tmp_path / "nowhere")))
    old = Path(shutil.copytree(yesterday.root, tmp_path / "old"))
    damaged = dataclasses.replace(today, grow_from=str(old))
    pq.write_table(pa.table({"value": ["Rome"]}), old / "vocabularies" / "city.parquet")
    with pytest.raises(ValueError, match=r"table 'city': --grow-from .*old has a vocabulary of 1 values, but num_embeddings 4"):
        prepare(damaged)
    for spoil in (lambda file: file.write_bytes(b"PAR1"), Path.unlink):
        spoil(old / "vocabularies" / "city.parquet")
        with pytest.raises(
            ValueError, match=r"old/vocabularies/city.parquet cannot be read as a vocabulary .*: prepare the dataset"
        ):
            prepare(damaged)
    assert not Path(today.out).exists()


def test_twice_is_the_same_and_another_start_is_not(yesterday, today, tmp_path, capsys):
    first = prepare(today)
    again = prepare(dataclasses.replace(today, out=str(tmp_path / "again")))
    assert files_of(first) == files_of(again)
    capsys.readouterr()
    moved = str(shutil.copytree(yesterday.root, tmp_path / "moved"))
    prepare(dataclasses.replace(today, grow_from=moved))
    assert "is up to date with its inputs" in capsys.readouterr().out, "what counts is what it grows from, not where that lies"
    for start in ("", str(first.root)):
        with pytest.raises(FileExistsError, match="prepared from other inputs or settings"):
            prepare(dataclasses.replace(today, grow_from=start))


def test_spark_grows_alike(grown: DatasetDirectory, grown_from: PrepareConfig, spark_session: SparkSession):
    on_spark = prepare(dataclasses.replace(grown_from, engine="spark", out=f"{grown_from.out}-spark"))
    assert files_of(on_spark) == files_of(grown)
