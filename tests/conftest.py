"""One Ray and one small dataset for the whole session, and a Spark for the modules that want one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from recsys_ray.config import PrepareConfig
from recsys_ray.data.prepare import pipeline as prepare_module
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import synthetic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 61_000  # leaves a short block in every split
BLOCK_ROWS = 128


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # "local": never a cluster that happens to run on this machine. Four workers, so that writers run beside one another.
    ray.init("local", num_cpus=4, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def spark_master() -> str:
    """A module that wants another Spark has a fixture of this name."""
    return "local[2]"


@pytest.fixture(scope="module")
def spark_session(spark_master: str) -> Iterator[SparkSession]:
    """The active session of one module, not of all: other code runs on Spark where it finds one active."""
    if not shutil.which("java"):
        pytest.skip("Spark needs Java 17, and there is no `java` here")
    SparkSession = pytest.importorskip("pyspark.sql").SparkSession
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    loopback = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    settings = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.log.level": "FATAL"}
    spark = SparkSession.builder.master(spark_master).config(map=loopback | settings).getOrCreate()
    yield spark
    spark.stop()


@pytest.fixture(scope="session")
def dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset directory with a multi-valued column."""
    root = tmp_path_factory.mktemp("synthetic")
    raw = synthetic.generate(root / "raw", ROWS, dense=3, categorical=4, num_embeddings=500, multi=True)
    prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(root / "dataset"), block_rows=BLOCK_ROWS))
    return root / "dataset"


@pytest.fixture
def one_writer_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first write task to finish its shards is killed; the engine runs it again. Yields the file that then exists."""
    mark, writer = tmp_path / "killed", prepare_module.PartWriter

    class KilledOnce(writer):
        def write(self, table, number):
            part = super().write(table, number)
            if part.rows["train"] and not mark.exists():
                mark.write_text(part.folder)
                os.kill(os.getpid(), signal.SIGKILL)
            return part

    monkeypatch.setattr(prepare_module, "PartWriter", KilledOnce)
    return mark
