"""The Spark session that preparation runs on, and what comes of its errors: the active one, else one of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException, PythonException
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from recsys_ray.data.engines.base import EngineFailed
from recsys_ray.data.engines.spark.tasks import carried_error
from recsys_ray.spark_jobs import run_in_group

ON_THIS_MACHINE = {
    "spark.master": "local[*]",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "4g",
    "spark.driver.maxResultSize": "0",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
JAVA = "Spark wants Java 17: install it (Debian: openjdk-17-jre-headless) and let JAVA_HOME or PATH name it"
T = TypeVar("T")


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Stopped at the end only where it was made here. Raises ValueError without Java, or for a session of Spark Connect."""
    if is_remote():
        raise ValueError("--engine spark cannot use Spark Connect: on Databricks, run it on a cluster with dedicated access")
    active = _active()
    spark = active or _start()
    try:
        yield spark
    finally:
        if active is None:
            spark.stop()


def _active() -> SparkSession | None:
    try:
        return SparkSession.active()
    except PySparkException:
        return None


def _start() -> SparkSession:
    """Settings of its own only where neither spark-submit nor PYSPARK_SUBMIT_ARGS brings any."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return SparkSession.builder.getOrCreate()
    home = os.environ.get("JAVA_HOME")
    if not (Path(home, "bin", "java").exists() if home else shutil.which("java")):
        raise ValueError(f"--engine spark found no Java. {JAVA}")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {} if "PYSPARK_SUBMIT_ARGS" in os.environ else ON_THIS_MACHINE
    with tempfile.TemporaryFile("w+") as log:
        try:
            with _stderr_into(log.fileno()):
                return SparkSession.builder.appName("recsys_ray").config(map=dict(settings)).getOrCreate()
        except PySparkException as error:
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.strip()]
            raise EngineFailed(f"Spark did not start ({said[-1] if said else error}). {JAVA}") from error


@contextmanager
def _stderr_into(file: int) -> Iterator[None]:
    """Java inherits standard error and keeps it: what Spark logs, even before it reads its settings, would drown our lines."""
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def run_jobs(spark: SparkSession, work: Callable[[], T]) -> T:
    """What `work` returns after its Spark jobs, none of which outlives it; what their tasks raise is raised here."""
    try:
        return run_in_group(spark, "recsys_ray preparation", work)
    except (PySparkException, Py4JError) as error:
        raise carried_error(str(error)) or EngineFailed(f"Spark: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line, without the stack: Java says first what happened, and Python last."""
    text = error.java_exception.getMessage() or "" if isinstance(error, Py4JJavaError) else str(error)
    lines = text.partition("JVM stacktrace:")[0].strip().splitlines() or [repr(error)]
    return lines[-1 if isinstance(error, PythonException) else 0]
