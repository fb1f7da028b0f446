"""Paths of input: what exists is meant literally, and a table of Delta, Iceberg or Hudi is no folder of plain Parquet."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.serving.app.deployments.history import raw_interactions
from recsys_ray.serving.app.deployments.users import UserTable

pytestmark = pytest.mark.unit
TABLE = pa.table({"user": ["a", "b"], "item": [1, 2], "click": [0, 1], "age": [3.0, 4.0]})
USER = Categorical("user", "user", dtype="string", num_embeddings=9, key=True)
ITEM = Categorical("item", "item", num_embeddings=9, key=True)
TABLE_FORMATS = {
    "Delta": ("_delta_log/00000000000000000000.json", "."),
    "Iceberg": ("metadata/00000-0b7d.metadata.json", "data"),
    "Hudi": (".hoodie/hoodie.properties", "day=1"),
}
"""Format -> a file that marks a table, and the folder of its Parquet files."""


def write(file: Path, table: pa.Table = TABLE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


@pytest.mark.parametrize("name", ["data [2024]/0.parquet", "x#1?y/0.parquet", "50%20 off/0.parquet", "files/part [1].parquet"])
def test_what_exists_is_meant_literally(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name)
    for path in (file, file.parent, file.parent / "*.parquet"):
        assert find_parquet(str(path)).paths == (str(file),)


def test_what_does_not_exist_is_a_glob(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"day {day}" / "0.parquet")) for day in range(3)]
    assert list(find_parquet(f"{tmp_path}/day [01]/?.parquet").paths) == files[:2]
    with pytest.raises(FileNotFoundError, match=r"no Parquet file at .*day \[7\]"):
        find_parquet(f"{tmp_path}/day [7]")


@pytest.mark.parametrize("table_format", TABLE_FORMATS)
def test_a_table_of_another_format_is_refused(table_format: str, tmp_path: Path) -> None:
    """Also by a folder of it, by a glob and by a folder that holds it."""
    mark, data = TABLE_FORMATS[table_format]
    file = write(tmp_path / "in" / "clicks" / data / "0.parquet")
    marking = tmp_path / "in" / "clicks" / mark
    marking.parent.mkdir()
    marking.touch()
    for path in (tmp_path / "in" / "clicks", file.parent, file.parent / "*.parquet", tmp_path / "in"):
        with pytest.raises(ValueError, match=rf"/clicks is a table of {table_format}, .*: prepare it with --engine spark as"):
            find_parquet(str(path))


def test_a_folder_named_metadata_is_no_table(tmp_path: Path) -> None:
    write(tmp_path / "in" / "0.parquet")
    (tmp_path / "in" / "metadata").mkdir()
    (tmp_path / "in" / "metadata" / "owner.json").touch()
    assert find_parquet(str(tmp_path / "in")).rows == 2


def test_the_service_reads_its_tables_by_the_same_rules(tmp_path: Path) -> None:
    folder = write(tmp_path / "users [1]" / "0.parquet").parent
    schema = Schema((Label("click"), USER, ITEM, Dense("age", "user")))
    (part,) = raw_interactions(str(folder / "*.parquet"), schema)
    assert part.users.to_pylist() == ["a", "b"] and part.liked.tolist() == [False, True]
    assert UserTable.load((str(folder),), USER, [Dense("age", "user")]).find("b") == {"user": "b", "age": 4.0}
    (folder / "_delta_log").mkdir()
    (folder / "_delta_log" / "0.json").touch()
    for read in (lambda: UserTable.load((str(folder),), USER, []), lambda: list(raw_interactions(str(folder), schema))):
        with pytest.raises(ValueError, match="is a table of Delta"):
            read()


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_checkpoints_below_a_name_that_looks_like_a_glob(scheme: str, tmp_path: Path) -> None:
    """The name matches that of another run, whose checkpoint must be neither copied nor removed."""
    stores = [CheckpointStore(f"{scheme}{tmp_path}/{name}/checkpoints") for name in ("runs[12]", "runs1")]
    files = fsspec.filesystem(scheme.removesuffix("://") or "file")
    for number, store in enumerate(stores):
        files.makedirs(f"{tmp_path}/{('runs[12]', 'runs1')[number]}/checkpoints/step_5", exist_ok=True)
        store.commit(5, {"run": number})
    stores[0].copy(5, str(tmp_path / "copy"))
    assert CheckpointStore(str(tmp_path / "copy")).marker(5) == {"run": 0}
    stores[0].remove(5)
    assert [store.committed() for store in stores] == [[], [5]]
