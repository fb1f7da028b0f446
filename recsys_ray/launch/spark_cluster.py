"""Connects to the Spark cluster to run on, and checks whether it has room."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from recsys_ray.compat.spark_compat import concurrent_tasks
from recsys_ray.config import LaunchConfig
from recsys_ray.launch.worker import thread_settings

EXECUTOR_SECONDS = 60


@contextmanager
def active_session(make: Callable[[], SparkSession]) -> Iterator[SparkSession]:
    """Yields the active session (Databricks, spark-submit), or one that `make` makes and that is stopped at the end."""
    active = SparkSession.getActiveSession()
    if active is None:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))
    spark = active or make()
    try:
        yield spark
    finally:
        if active is None:
            spark.stop()


def new_session(config: LaunchConfig) -> SparkSession:
    """Returns a new session at --launch.spark.master, or without one a local session with a thread for each worker."""
    builder = SparkSession.builder.appName("recsys_ray").config("spark.ui.enabled", False)
    builder = builder.config("spark.stage.maxConsecutiveAttempts", 1).config("spark.log.level", "ERROR")
    builder = builder.config(map={f"spark.executorEnv.{name}": value for name, value in thread_settings().items()})
    if config.spark.master:
        return builder.master(config.spark.master).getOrCreate()
    return builder.master(f"local[{config.workers}]").config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()


def on_driver(spark: SparkSession, config: LaunchConfig) -> bool:
    """Returns whether workers are processes of the driver's machine, rather than tasks."""
    return config.spark.mode == "driver" or (config.spark.mode == "auto" and _is_local(spark))


def _is_local(spark: SparkSession) -> bool:
    """Whether Spark is the driver's process and nothing else."""
    master = spark.conf.get("spark.master") or ""
    return master == "local" or master.startswith("local[")


def has_gpus(spark: SparkSession, driver: bool) -> bool:
    """Returns whether Spark gives GPUs to the driver, or else to a task."""
    key = "spark.driver.resource.gpu.amount" if driver else "spark.task.resource.gpu.amount"
    return int(spark.conf.get(key, "0") or 0) > 0


def check_slots(spark: SparkSession, tasks: int) -> None:
    """Raises ValueError if so many tasks cannot run at once, a minute after the start of executors.

    Spark itself would try for ten minutes, while executors come within seconds.
    """
    deadline = time.monotonic() + (0 if _is_local(spark) else EXECUTOR_SECONDS)
    while (slots := concurrent_tasks(spark)) < tasks:
        if time.monotonic() > deadline:
            cpus = spark.conf.get("spark.task.cpus", "1")
            raise ValueError(
                f"the workers need {tasks} Spark tasks at once, and {spark.conf.get('spark.master')} has room for {slots} "
                f"of {cpus} CPUs (spark.task.cpus): ask for fewer --launch.workers, or add executors"
            )
        time.sleep(0.5)
