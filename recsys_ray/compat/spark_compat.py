"""Gives a public name to what PySpark does not offer: how many tasks can run at once.

Only the Java side knows (`SparkContext._jsc`): PySpark's own `defaultParallelism` is a setting, and does not say how many
executors have come.
"""

from __future__ import annotations

from recsys_ray.compat.versions import require_version

require_version("pyspark", ["4.0", "4.3"])

from pyspark.sql import SparkSession


def concurrent_tasks(spark: SparkSession) -> int:
    """Returns how many tasks of the default resources the executors that are there now can run at once."""
    context = spark.sparkContext._jsc.sc()
    return context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile())
