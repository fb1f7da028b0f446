"""The Spark session that preparation runs on, the active one or one of its own, and how its errors are raised here."""

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
from recsys_ray.data.engines.spark.task_results import carried_error
from recsys_ray.spark_jobs import run_in_group

LOCAL_SETTINGS = {
    "spark.master": "local[*]",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "4g",
    "spark.driver.maxResultSize": "0",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
JAVA_REMEDY = "Spark wants Java 17: install it (Debian: openjdk-17-jre-headless) and let JAVA_HOME or PATH name it"
T = TypeVar("T")


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Yields the active session, or a new one that is stopped at the end.

    Raises ValueError without Java or for a session of Spark Connect, EngineFailed when Spark does not start.
    """
    if is_remote():
        raise ValueError("--engine spark cannot use Spark Connect: on Databricks, run it on a cluster with dedicated access")
    active = _active_session()
    spark = active or _start_session()
    try:
        yield spark
    finally:
        if active is None:
            spark.stop()


def _active_session() -> SparkSession | None:
    try:
        return SparkSession.active()
    except PySparkException:
        return None


def _start_session() -> SparkSession:
    """Starts a session, with LOCAL_SETTINGS unless spark-submit or PYSPARK_SUBMIT_ARGS brings settings."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return SparkSession.builder.getOrCreate()
    home = os.environ.get("JAVA_HOME")
    if not (Path(home, "bin", "java").exists() if home else shutil.which("java")):
        raise ValueError(f"--engine spark found no Java. {JAVA_REMEDY}")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {} if "PYSPARK_SUBMIT_ARGS" in os.environ else LOCAL_SETTINGS
    with tempfile.TemporaryFile("w+") as log:
        try:
            with _stderr_into(log.fileno()):
                return SparkSession.builder.appName("recsys_ray").config(map=dict(settings)).getOrCreate()
        except PySparkException as error:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if line.strip()]
            raise EngineFailed(f"Spark did not start ({lines[-1] if lines else error}). {JAVA_REMEDY}") from error


@contextmanager
def _stderr_into(file: int) -> Iterator[None]:
    """Sends standard error to `file` while Java starts and inherits it: what Spark logs would drown our own lines."""
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def run_jobs(spark: SparkSession, work: Callable[[], T]) -> T:
    """Returns what `work` returns after running Spark jobs, none of which outlives the call; raises what their tasks raise."""
    try:
        return run_in_group(spark, "recsys_ray preparation", work)
    except (PySparkException, Py4JError) as error:
        raise carried_error(str(error)) or EngineFailed(f"Spark: {error_line(error)}") from error


def error_line(error: Exception) -> str:
    """Returns the line that says what happened, without the stack: the first line of a Java error, the last of a Python error."""
    text = error.java_exception.getMessage() or "" if isinstance(error, Py4JJavaError) else str(error)
    lines = text.partition("JVM stacktrace:")[0].strip().splitlines() or [repr(error)]
    return lines[-1 if isinstance(error, PythonException) else 0]
