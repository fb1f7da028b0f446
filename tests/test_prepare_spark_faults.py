"""Preparation on Spark: messages for bad input and a missing Spark, Ctrl-C, and executors in processes of their own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions

from recsys_ray.data.engines.spark.tables import open_spark_table
from recsys_ray.data.engines.spark.task_results import carried_error, carrying_errors
from recsys_ray.data.prepare.pipeline import prepare
from tests.support.preparing import clicks, config_for, read_split, write_input
from tests.support.processes import ROOT

JOB = ROOT / "jobs" / "prepare_data.py"
NO_RAY = f"import runpy, sys; runpy.run_path({str(JOB)!r}, run_name='__main__'); assert 'ray' not in sys.modules"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_damaged_pages(spark_session, tmp_path):
    source = write_input(tmp_path / "in", files=2)
    data = bytearray((source / "1.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (source / "1.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"in/1.parquet is damaged \(.*\): write it again or leave it out"):
        prepare(config_for(source, engine="spark"))
    assert names(tmp_path) == ["in"]


def test_too_many_bad_rows(spark_session, tmp_path):
    source = write_input(tmp_path / "in", clicks(300) | {"click": [0, 1, 2] * 100})
    with pytest.raises(ValueError, match=r"100 of 300 rows of .* are bad, more than --max-rejected 0.1: click: not 0"):
        prepare(config_for(source, engine="spark"))
    assert names(tmp_path) == ["in"]


def test_tables_that_cannot_be_read(spark_session, tmp_path):
    source = write_input(tmp_path / "in")
    config = config_for(source, engine="spark", parquet="table:nothing", schema=str(source / "schema.json"))
    with pytest.raises(
        ValueError, match=r"table:nothing is no table or view of this Spark session \(Spark: \[TABLE_OR_VIEW_NOT_FOUND\]"
    ):
        prepare(config)
    with pytest.raises(ValueError, match="table:nothing is a table of Spark's: add --engine spark"):
        prepare(dataclasses.replace(config, engine="ray"))
    with pytest.raises(FileNotFoundError, match=r"no schema.json beside table:nothing: name one with --schema"):
        prepare(dataclasses.replace(config, schema=""))
    spark_session.read.parquet(str(source / "0.parquet")).createOrReplaceTempView("clicks")
    with pytest.raises(ValueError, match=r"column 'city' of the schema is not in table:parts, which has: click"):
        spark_session.table("clicks").drop("city").createOrReplaceTempView("parts")
        prepare(dataclasses.replace(config, parquet="table:parts"))
    with pytest.raises(ValueError, match=r"no rows: table:none has columns but is empty"):
        spark_session.table("clicks").limit(0).createOrReplaceTempView("none")
        prepare(dataclasses.replace(config, parquet="table:none"))
    spark_session.sql("SELECT *, make_interval(1) AS year FROM clicks").createOrReplaceTempView("strange")
    with pytest.raises(ValueError, match=r"table:strange has a column that cannot be read: .*CalendarInterval"):
        prepare(dataclasses.replace(config, parquet="table:strange"))
    spark_session.sql("SELECT *, assert_true(user < 50) AS checked FROM clicks").createOrReplaceTempView("failing")
    with pytest.raises(RuntimeError, match=r"^Spark: \[USER_RAISED_EXCEPTION\]"):
        prepare(dataclasses.replace(config, parquet="table:failing"))
    assert names(tmp_path) == ["in"]


def test_rows_that_change_between_passes(spark_session, tmp_path):
    """A view that is computed anew each time, or a table written to meanwhile, gives as many rows, but other ones."""
    source = write_input(tmp_path / "in")
    config = config_for(source, engine="spark", parquet="table:moving", schema=str(source / "schema.json"))
    spark_session.read.parquet(str(source / "0.parquet")).createOrReplaceTempView("still")
    spark_session.udf.register("noise", functions.udf(lambda: time.time(), "double").asNondeterministic())
    spark_session.sql("SELECT * EXCEPT (price), price + noise() AS price FROM still").createOrReplaceTempView("moving")
    with pytest.raises(ValueError, match="not the 2,000 rows that were to be kept: the source changed during preparation"):
        prepare(config)
    assert names(tmp_path) == ["in"]


def test_values_that_change_places_make_another_table(spark_session, tmp_path):
    """xxhash64 alone skips nulls and the boundaries between lists."""
    types = {"a": pa.int64(), "b": pa.int64(), "c": pa.list_(pa.int64()), "d": pa.list_(pa.int64())}
    rows = [
        (1, None, [1], [2, 3]),
        (None, 1, [1], [2, 3]),
        (1, None, [1, 2], [3]),
        (1, None, None, [1, 2, 3]),
        (1, None, [], [1, 2, 3]),
    ]
    stamps = set()
    for row in rows:
        table = pa.table({name: pa.array([value], kind) for (name, kind), value in zip(types.items(), row, strict=True)})
        spark_session.createDataFrame(table).createOrReplaceTempView("changing")
        stamps.add(open_spark_table(spark_session, "changing").stamps)
    assert len(stamps) == len(rows)


class Stubborn(Exception):
    def __init__(self, lock: object) -> None:
        super().__init__("the store said no")
        self.lock = lock


def test_an_error_that_cannot_travel_is_told_in_words():
    def task(batches):
        raise Stubborn(threading.Lock())
        yield

    with pytest.raises(RuntimeError) as raised:
        list(carrying_errors(task)(iter(())))
    assert str(carried_error(str(raised.value))) == "Stubborn: the store said no"


def test_bad_rows_of_files_that_differ_in_what_may_be_null(spark_session, tmp_path):
    source = write_input(tmp_path / "in", clicks(1000) | {"click": [0, 1, 0, 1, 2] * 200}, files=2)
    for number, nullable in enumerate((True, False)):
        table = pq.read_table(source / f"{number}.parquet")
        fields = [field.with_nullable(nullable) for field in table.schema]
        pq.write_table(pa.table(table.columns, schema=pa.schema(fields)), source / f"{number}.parquet")
    dataset = prepare(config_for(source, engine="spark", max_rejected=0.3))
    assert pq.read_table(dataset.root / "rejected").num_rows == 200 and "rejected.attempts" not in names(dataset.root)


NO_PYSPARK = f"import runpy, sys; sys.modules['pyspark'] = None; runpy.run_path({str(JOB)!r}, run_name='__main__')"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([str(JOB)], "prepare_data: --engine spark found no Java. Spark wants Java 17: install it"),
        (["-c", NO_PYSPARK], "prepare_data: --engine spark wants pyspark: pip install 'recsys-ray[spark]'"),
    ],
    ids=["java", "pyspark"],
)
def test_what_spark_needs_and_is_not_installed_is_named(program, message, tmp_path):
    source = write_input(tmp_path / "in")
    flags = ["--engine", "spark", "--parquet", str(source), "--out", str(tmp_path / "dataset")]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "PYSPARK_SUBMIT_ARGS")}
    command, environment = [sys.executable, *program, *flags], {**environment, "PATH": "/nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1, done.stderr
    assert names(tmp_path) == ["in"]


@pytest.fixture
def no_session() -> None:
    if not shutil.which("java"):
        pytest.skip("Spark needs Java 17, and there is no `java` here")


@pytest.mark.long
def test_on_executors_in_processes_of_their_own(no_session, tmp_path, monkeypatch):
    """The settings come from spark-submit, as on a cluster, and Ray is not imported."""
    loopback = "--conf spark.driver.bindAddress=127.0.0.1 --conf spark.driver.host=127.0.0.1 --conf spark.ui.enabled=false"
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local-cluster[1,1,1024] {loopback} pyspark-shell")
    source = write_input(tmp_path / "in", clicks(500), files=2)
    command = [sys.executable, "-c", NO_RAY, "--engine", "spark", "--parquet", source, "--out", tmp_path / "dataset"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "dataset: 500 rows in -> {'train': " in done.stdout and names(tmp_path) == ["dataset", "in"]
    assert sum(len(read_split(tmp_path / "dataset", split)[0]) for split in ("train", "validation", "test")) == 500


def test_an_interrupt_half_way(no_session, tmp_path):
    table = pa.concat_tables([pa.table(clicks(1_000) | {"tags": [[1, 2]] * 1_000})] * 200)
    source = write_input(tmp_path / "in", table, files=4)
    command = [sys.executable, str(JOB), "--engine", "spark", "--parquet", str(source), "--out", str(tmp_path / "dataset")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "prepare: writing ...":
        assert process.poll() is None, "it ended before it could be interrupted"
    while not list((tmp_path / ".dataset.preparing").glob("train/part-*")):
        assert process.poll() is None, "it ended before it could be interrupted"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Java and the Python workers too
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "prepare_data: interrupted; nothing was written\n")
    assert names(tmp_path) == ["in"]
