"""The public data sets as Parquet: official and packaged MovieLens, Criteo's text files, and synthetic clicks."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys_ray.datasets import criteo, movielens, synthetic
from recsys_ray.datasets.teacher import (
    BINS,
    LabelCounts,
    Teacher,
    auc_of_counts,
    generate_rows,
    load_teacher,
    teacher_probability,
)
from recsys_ray.schema import Schema

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
USERS = "1::F::1::10::48067\n2::M::56::16::02460-1234\n"
MOVIES = "661::James and the Giant Peach (1996)::Animation|Children's\n1193::Misérables, Les: Part::Drama\n"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    source = tmp_path / "ml-1m"
    source.mkdir()
    for name, text in zip(movielens.FILES, (RATINGS, USERS, MOVIES), strict=True):
        (source / name).write_bytes(text.encode("latin-1"))
    return source


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return movielens.fetch(tmp_path_factory.mktemp("data") / "ml-1m")
    except ConnectionError as error:
        pytest.skip(f"pip cannot fetch the package here: {error}")


@pytest.mark.unit
def test_movielens_official_folder(official: Path, tmp_path: Path) -> None:
    out = movielens.fetch(tmp_path / "out", official)
    ratings = pq.read_table(out / "interactions.parquet")
    assert ratings["item_id"].to_pylist() == [1193, 661, 1193]
    assert ratings["timestamp"].to_pylist() == [978300760, 978302109, 978298413]
    assert pq.read_table(out / "users.parquet").to_pylist()[1] == {
        "user_id": 2, "gender": "M", "age": 56, "occupation": 16, "zip_code": "02460-1234",
    }  # fmt: skip
    assert pq.read_table(out / "items.parquet").to_pylist() == [
        {"item_id": 661, "title": "James and the Giant Peach (1996)", "year": 1996, "genres": ["Animation", "Children's"]},
        {"item_id": 1193, "title": "Misérables, Les: Part", "year": None, "genres": ["Drama"]},
    ]
    joined = {name for table in out.glob("*.parquet") for name in pq.read_schema(table).names}
    assert {column.name for column in Schema.load(out / "schema.json").columns} == joined - {"title"}
    assert [column.name for column in Schema.load(out / "schema.json").dense] == ["year"]


@pytest.mark.unit
def test_movielens_is_all_or_nothing(official: Path, tmp_path: Path) -> None:
    out = movielens.fetch(tmp_path / "out", official)
    written = (out / "schema.json").stat().st_mtime_ns
    assert movielens.fetch(out, official) == out
    assert movielens.fetch(out) == out  # Whatever it came from, it is there: no download.
    assert (out / "schema.json").stat().st_mtime_ns == written
    with (official / "ratings.dat").open("a") as file:
        file.write("1::661::three::978302109\n")
    with pytest.raises(FileExistsError, match="remove it"):
        movielens.fetch(out, official)
    with pytest.raises(ValueError, match=r"ratings\.dat.*three"):
        movielens.fetch(tmp_path / "other", official)
    (official / "users.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"users\.dat"):
        movielens.fetch(tmp_path / "other", official)
    assert {path.name for path in tmp_path.iterdir()} == {"ml-1m", "out"}


def test_movielens_from_package(packaged: Path) -> None:
    ratings, items = pq.read_table(packaged / "interactions.parquet"), pq.read_table(packaged / "items.parquet")
    assert (len(ratings), len(items), pq.read_table(packaged / "users.parquet").num_rows) == (1_000_209, 3_883, 6_040)
    assert items["item_id"].to_pylist() == list(range(1, 3_884))
    assert items.slice(0, 1).to_pylist() == [
        {"item_id": 1, "title": "Toy Story (1995)", "year": 1995, "genres": ["Animation", "Children's", "Comedy"]}
    ]
    # The first lines of the official ratings.dat are 1::1193::5::978300760 and 1::661::3::978302109.
    title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    first = [(title[row["item_id"]], row["rating"], row["timestamp"]) for row in ratings.slice(0, 2).to_pylist()]
    assert first == [
        ("One Flew Over the Cuckoo's Nest (1975)", 5, 978300760),
        ("James and the Giant Peach (1996)", 3, 978302109),
    ]
    assert pq.read_schema(packaged / "users.parquet").names == list(movielens.USERS)


@pytest.mark.unit
def test_movielens_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"--source"):
        movielens.fetch(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def _criteo_line(label: str, dense: str, categorical: str) -> str:
    return "\t".join([label, *[dense] * 13, *[categorical] * 26])


@pytest.mark.unit
def test_criteo_plain_and_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo, "CSV_BLOCK_BYTES", 1000)
    monkeypatch.setattr(criteo, "ROWS_PER_FILE", 10)
    plain, zipped = tmp_path / "day_0", tmp_path / "day_1.gz"
    plain.write_text("\n".join(_criteo_line("0", str(number), "68fd1e64") for number in range(50)) + "\n")
    zipped.write_bytes(gzip.compress((_criteo_line("1", "", "") + "\n" + _criteo_line("0", "-2", "0a") + "\n").encode()))
    out = criteo.convert([plain, zipped], tmp_path / "out", num_embeddings=1000)
    parts = sorted((out / "interactions").iterdir())
    table = pq.read_table(out / "interactions")
    assert len(parts) > 3
    assert [name for part in parts for name in pq.read_table(part)["i13"].to_pylist()] == [*range(50), None, -2]
    assert table.slice(50)["c26"].to_pylist() == [None, "0a"]
    assert table.column_names == [column.name for column in Schema.load(out / "schema.json").columns]
    assert criteo.convert([plain, zipped], out, num_embeddings=1000) == out


@pytest.mark.unit
@pytest.mark.parametrize("line", [_criteo_line("0", "1", "a")[2:], _criteo_line("0", "x", "a"), ""])
def test_criteo_names_the_file_at_fault(tmp_path: Path, line: str) -> None:
    file = tmp_path / "train.txt"
    file.write_text("".join(text + "\n" for text in (_criteo_line("0", "1", "a"), line) if line))
    with pytest.raises(ValueError, match=r"train\.txt"):
        criteo.convert([file], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_synthetic_rows_do_not_depend_on_blocks(ray_session: None, tmp_path: Path) -> None:
    few = synthetic.generate_clicks(tmp_path / "few", rows=10_001, multi=True, seed=3, block_rows=10_000)
    many = synthetic.generate_clicks(tmp_path / "many", rows=10_001, multi=True, seed=3, block_rows=1_500)
    other = synthetic.generate_clicks(tmp_path / "other", rows=10_001, multi=True, seed=4)
    tables = [pq.read_table(folder / "interactions") for folder in (few, many, other)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert len(list((many / "interactions").iterdir())) > 5
    assert (few / "teacher.json").read_text() == (many / "teacher.json").read_text()
    assert tables[0].column_names == [column.name for column in Schema.load(few / "schema.json").columns]
    assert synthetic.generate_clicks(few, rows=10_001, multi=True, seed=3) == few
    with pytest.raises(FileExistsError, match="seed"):
        synthetic.generate_clicks(few, rows=10_001, multi=True, seed=5)


def test_synthetic_best_auc_is_that_of_the_teacher(ray_session: None, tmp_path: Path) -> None:
    out = synthetic.generate_clicks(tmp_path / "out", rows=30_000, dense=3, categorical=5, num_embeddings=500, multi=True)
    table = pq.read_table(out / "interactions")
    probability, label = teacher_probability(table, load_teacher(out)), table["label"].to_numpy() == 1
    order = np.searchsorted(np.sort(probability[~label]), probability[label]).mean() / (~label).sum()
    facts = json.loads((out / "teacher.json").read_text())
    assert facts["best_auc"] == pytest.approx(order, abs=1e-5)
    assert 0.7 < facts["best_auc"] < 0.95
    # Calibrated: labels were drawn with these very probabilities.
    assert facts["positive_rate"] == pytest.approx(probability.mean(), abs=0.01)


@pytest.mark.unit
def test_synthetic_columns_are_as_described() -> None:
    teacher = Teacher(num_embeddings=1000, exponent=1.5, multi=True)
    table = generate_rows(teacher, np.arange(50_000))
    for name, size in teacher.ids.items():
        ids = table[name].to_numpy() if name != "m1" else table[name].combine_chunks().values.to_numpy()
        assert ids.min() == 0 and ids.max() < size
    counts = np.bincount(table["c26"].to_numpy())
    # On [k, 2k) and [4k, 8k) a power law with exponent 1.5 differs by 4 ** 0.5, less a little for its bounded end.
    assert counts[15:31].sum() / counts[63:127].sum() == pytest.approx(2, rel=0.15)
    dense = np.stack([table[f"i{number}"].to_numpy() for number in range(1, 14)])
    assert np.abs(np.corrcoef(dense) - np.eye(13)).max() < 0.02
    assert dense.mean() == pytest.approx(0, abs=0.01) and dense.std() == pytest.approx(1, abs=0.01)
    assert np.bincount(np.diff(table["m1"].combine_chunks().offsets.to_numpy())).tolist()[0] == 0


@pytest.mark.unit
def test_auc_of_counts() -> None:
    positive, negative = np.zeros((2, BINS))
    assert np.isnan(auc_of_counts(LabelCounts(positive, negative)))
    negative[10], positive[20] = 5, 3
    assert auc_of_counts(LabelCounts(positive, negative)) == 1
    positive[10] = 3
    assert auc_of_counts(LabelCounts(positive, negative)) == 0.75


@pytest.mark.unit
def test_synthetic_refuses_impossible_parameters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exponent"):
        synthetic.generate_clicks(tmp_path / "out", rows=10, exponent=0.9)
    with pytest.raises(ValueError, match="rows"):
        synthetic.generate_clicks(tmp_path / "out", rows=0)
