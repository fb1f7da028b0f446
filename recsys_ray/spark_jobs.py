"""Runs Spark jobs that end with their caller, for preparation and for training on Spark."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from pyspark import inheritable_thread_target
from pyspark.sql import SparkSession

T = TypeVar("T")


def run_in_group(spark: SparkSession, description: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, and leaves none of its Spark jobs behind, not even after Ctrl-C.

    `work` runs in a thread of its own: a call to Java that Ctrl-C interrupts leaves that thread's connection unusable, and no job
    could be cancelled through it.
    """
    context, group = spark.sparkContext, f"recsys_ray-{uuid.uuid4().hex}"

    @inheritable_thread_target(spark)
    def grouped() -> T:
        context.setJobGroup(group, description, interruptOnCancel=True)
        return work()

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(grouped)
        try:
            return job.result()
        finally:
            while not job.done():
                context.cancelJobGroup(group)
                wait([job], timeout=0.2)
