"""Fixtures of all tests: one Ray and one small dataset for the whole session, and a Spark for each module that wants one.

What is slow to import is imported where it is used, so that the unit tests start quickly.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.support.two_stages import TwoStages


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the modules without a unit test when only those are wanted: importing them takes longer than the tests."""
    if config.option.markexpr != "unit" or not collection_path.match("test_*.py"):
        return None
    return "pytest.mark.unit" not in collection_path.read_text() or None


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Starts a Ray of four CPUs, which lets several writers run at once."""
    import ray

    # "local": never a cluster that happens to run on this machine.
    ray.init("local", num_cpus=4, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def spark_master() -> str:
    """Names the master of the module's Spark. A module that wants another one has a fixture of this name."""
    return "local[2]"


@pytest.fixture(scope="module")
def spark_session(spark_master: str) -> Iterator[SparkSession]:
    """Starts the active Spark session for one module only, because other code runs on Spark wherever a session is active."""
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
    """Prepares a small synthetic dataset directory that has a multi-valued column."""
    from tests.support.preparing import synthetic_dataset

    return synthetic_dataset(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="session")
def one_epoch(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a small DLRM for one undisturbed epoch on two workers, row-wise. What changes the run works on a copy of it."""
    from recsys_ray.training.train import train
    from tests.support.runs import dlrm_config
    from tests.support.workers import run_workers

    run_dir = tmp_path_factory.mktemp("one_epoch") / "run"
    run_workers(train, 2, dlrm_config(dataset, run_dir))
    return run_dir


@pytest.fixture(scope="session")
def two_stages(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> TwoStages:
    """Trains a small Two Tower and a small DLRM on the same clicks."""
    from tests.support.two_stages import train_two_stages

    return train_two_stages(tmp_path_factory.mktemp("two_stages"))
