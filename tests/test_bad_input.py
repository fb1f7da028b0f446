"""Bad input to preparation: what is refused or set aside, what the message says, and that nothing is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.config import SplitConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.schema import Categorical, Dense, Label, Timestamp, Weight
from tests.support.preparing import clicks, config_for, read_split, write_input

SCHEMA = (
    Label("click"),
    Dense("price", fill=-1.0),
    Categorical("user", encoding="identity", num_embeddings=102),
    Weight("w"),
    Timestamp("at"),
)


def left_behind(folder: Path) -> list[str]:
    """Returns what preparation into folder/dataset left beside its input."""
    return [path.name for path in folder.iterdir() if "dataset" in path.name]


def test_bad_rows_are_set_aside_with_the_reason_and_the_others_kept(ray_session, tmp_path):
    faults = {
        0: {"click": 2.0}, 1: {"click": None}, 2: {"price": math.inf}, 3: {"price": -math.inf}, 4: {"price": 1e200},
        5: {"user": -1.0}, 6: {"user": 101.0}, 7: {"user": 1.5}, 8: {"w": -1.0}, 9: {"w": None}, 10: {"at": None},
        20: {"price": math.nan}, 21: {"price": None}, 22: {"user": math.nan}, 23: {"user": None}, 24: {"w": 0.0},
    }  # fmt: skip
    good = {"click": 1.0, "price": 5.0, "user": 100.0, "w": 1.0}
    rows = [{**good, "at": number, "note": f"row {number}", **faults.get(number, {})} for number in range(200)]
    types = [("click", "double"), ("price", "double"), ("user", "double"), ("w", "double"), ("at", "int64"), ("note", "string")]
    source = write_input(tmp_path / "in", pa.Table.from_pylist(rows, pa.schema(types)), SCHEMA)
    dataset = prepare(config_for(source, split=SplitConfig(validation=0, test=0)))

    rejected = pq.read_table(dataset.root / "rejected").to_pandas().set_index("note")["reason"]
    large, id_fault = "price: infinite, or too large for float32", "user: id is not between 0 and 100 (num_embeddings - 2)"
    reasons = ["click: not 0 or 1", "click: missing, but it is the label", large, large, large, id_fault, id_fault]
    reasons += ["user: id is not a whole number of 64 bits", "w: negative, or too large for float32"]
    reasons += ["w: missing, but it is the weight", "at: missing, but it is the timestamp"]
    assert rejected.to_dict() == {f"row {number}": reason for number, reason in enumerate(reasons)}
    assert dataset.summary["rejected_reasons"] == pd.Series(reasons).value_counts().to_dict()
    kept = read_split(dataset.root, "train")[0].set_index("at").sort_index()
    assert kept.index.tolist() == list(range(11, 200))
    assert kept.loc[[20, 21, 25], "price"].tolist() == [-1, -1, 5], "NaN and null are filled"
    assert kept.loc[[22, 23, 24], "user"].tolist() == [0, 0, 101] and kept.loc[24, "w"] == 0


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            {"click": np.full(300, 5)},
            {},
            r"no rows to keep: all 300 rows of .*in are bad: click: not 0 or 1 .*positive_above",
        ),
        (
            {"click": np.arange(300) % 3},
            {},
            r"100 of 300 rows of .* are bad, more than --max-rejected 0.1: click: not 0",
        ),
        ({}, {"split": SplitConfig(validation=0.5, test=0.4999999)}, r"no training rows: .*Choose other fractions"),
        (
            {"at": np.full(300, 7)},
            {"split": SplitConfig(by="time")},
            "no training rows: .*Choose other fractions or another",
        ),
    ],
)
def test_rows_that_leave_nothing_to_train_on(change, settings, message, ray_session, tmp_path):
    source = write_input(tmp_path / "in", clicks(300) | change)
    with pytest.raises(ValueError, match=message):
        prepare(config_for(source, **settings))
    assert left_behind(tmp_path) == []


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rewrite(path: Path, **columns: pa.Array) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path)


NUMBERS_AS_TEXT = pa.array([str(number) for number in range(2000)])
FILES = {
    "0 bytes": (
        lambda path: cut(path, 0),
        r"0.parquet is not a whole Parquet file \(.*0 bytes.*\): write it again or leave it out",
    ),
    "truncated": (lambda path: cut(path, 5000), r"0.parquet is not a whole Parquet file \(.*\): write it again or leave it out"),
    "not Parquet": (lambda path: path.write_text("click,user\n" * 9), "0.parquet is not a whole Parquet file"),
    "gone": (Path.unlink, "no Parquet file at .*in: wants a .parquet file, a folder of them, or a glob"),
    "0 rows": (
        lambda path: pq.write_table(pq.read_table(path)[:0], path),
        "no rows: .*in has columns but is empty",
    ),
    "a column less": (
        lambda path: pq.write_table(pq.read_table(path).drop_columns(["city"]), path),
        "column 'city' of the schema is not in .*in, which has: click, price, user, tags, at",
    ),
    "numbers as text": (
        lambda path: rewrite(path, price=NUMBERS_AS_TEXT),
        "column 'price' in .* has type string, but a dense column must be a number or boolean: cast it",
    ),
    "a list for one id": (
        lambda path: rewrite(path, user=pa.array([[1]] * 2000)),
        "column 'user' in .* has type list<.*must be a whole number .*: say \"multi\": true in the schema",
    ),
    "nothing but nulls": (
        lambda path: rewrite(path, city=pa.nulls(2000)),
        "column 'city' in .* has type null, .*: every value is null, so leave it out of the schema",
    ),
    "another type in one file": (
        lambda path: pq.write_table(pa.table(clicks() | {"price": NUMBERS_AS_TEXT}), path.parent / "1.parquet"),
        "1.parquet: column 'price' has type string, but double in .*0.parquet: write one of them again, with one type",
    ),
    "a column less in one file": (
        lambda path: pq.write_table(pq.read_table(path).drop_columns(["city"]), path.parent / "1.parquet"),
        "1.parquet lacks column 'city', which .*0.parquet has",
    ),
    "no schema": (
        lambda path: (path.parent / "schema.json").unlink(),
        "no schema.json beside .*in: name one with --schema, or write a first one with --infer-schema FILE",
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("fault", FILES)
def test_files_refused_before_any_row_is_read(fault, tmp_path):
    damage, message = FILES[fault]
    source = write_input(tmp_path / "in")
    damage(source / "0.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(config_for(source))
    assert left_behind(tmp_path) == []


@pytest.mark.unit
def test_settings_refused_before_any_row_is_read(tmp_path):
    source = write_input(tmp_path / "in")
    for settings, message in {
        ("out", ""): "wants --parquet, what to read, and --out",
        ("out", "s3://bucket/x"): "--out s3://bucket/x is a URL: wants a folder on a file system that all workers share",
        ("out", str(source / "dataset")): "--out .* lies within --parquet .*, which is read whole: put it elsewhere",
        ("schema", "nope.json"): "no schema file at nope.json: write a first one with",
        ("parquet", str(tmp_path / "nope")): "no schema.json beside|no Parquet file at",
        (
            "split",
            SplitConfig(validation=0.7, test=0.3),
        ): "--split.validation 0.7 and --split.test 0.3 must be 0 or more and",
        ("split", SplitConfig(by="column")): "--split.by column wants --split.column",
        (
            "split",
            SplitConfig(by="column", column="part"),
        ): "--split.column 'part' is not a column of strings in .*in: click",
        ("split", SplitConfig(by="column", column="at")): "--split.column 'at' is not a column of strings",
        ("users", str(source / "0.parquet")): "join key 'user_id' is not a column of .*in, which has: click, price",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepare(config_for(source, **dict([settings])))
    (source / "schema.json").write_text((source / "schema.json").read_text().replace("timestamp", "dense"))
    with pytest.raises(ValueError, match=r"--split.by time wants a timestamp column in the schema"):
        prepare(config_for(source, split=SplitConfig(by="time")))
    assert left_behind(tmp_path) == []


@pytest.mark.unit
@pytest.mark.parametrize("name", ["notes.txt", "summary.json"])
def test_a_folder_that_is_no_dataset_is_left_alone(name, tmp_path):
    source, out = write_input(tmp_path / "in"), tmp_path / "dataset"
    out.mkdir()
    (out / name).write_text(json.dumps({"accuracy": 1}))
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"dataset exists and is not a dataset directory.*choose another --out"):
            prepare(config_for(source, overwrite=overwrite))
    assert [path.name for path in out.iterdir()] == [name] and left_behind(tmp_path) == ["dataset"]


def test_pages_damaged_behind_a_good_footer(ray_session, tmp_path):
    source = write_input(tmp_path / "in", files=3)
    for column, name in ((0, "1.parquet"), (3, "2.parquet")):
        chunk = pq.ParquetFile(source / name).metadata.row_group(0).column(column)
        data = bytearray((source / name).read_bytes())
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + 40] = b"\xff" * 40
        (source / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"in/1.parquet is damaged \(.*\): write it again or leave it out"):
        prepare(config_for(source))
    assert left_behind(tmp_path) == []
    write_input(source, files=3)
    pq.write_table(pa.table({"user": range(99), "age": [1.0] * 99}), tmp_path / "users.parquet")
    data = (tmp_path / "users.parquet").read_bytes()
    (tmp_path / "users.parquet").write_bytes(b"PAR1" + b"\xff" * 60 + data[64:])
    (source / "schema.json").write_text((source / "schema.json").read_text().replace('"price"', '"age"'))
    with pytest.raises(ValueError, match=r"users.parquet is damaged \(.*\): write it again or leave it out"):
        prepare(config_for(source, users=str(tmp_path / "users.parquet"), user_key="user"))
    assert left_behind(tmp_path) == []
