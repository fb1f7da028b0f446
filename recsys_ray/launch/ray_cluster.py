"""The Ray cluster to run on: the one at RAY_ADDRESS, one started on the nodes of a Spark cluster, or this machine alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray

from recsys_ray.config import RayConfig


@contextmanager
def ray_cluster(config: RayConfig) -> Iterator[None]:
    """Connected to a Ray cluster; what was started here is stopped at the end."""
    if ray.is_initialized():
        yield
        return
    with _on_spark(config) if _wants_spark(config) else nullcontext():
        _connect()
        try:
            yield
        finally:
            ray.shutdown()


def _connect() -> None:
    """Ray takes SIGTERM for itself, and would end the process at once: our own way to stop is kept."""
    before = signal.getsignal(signal.SIGTERM)
    ray.init()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _wants_spark(config: RayConfig) -> bool:
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ and "RAY_ADDRESS" not in os.environ
    return config.on_spark == "always" or (config.on_spark == "auto" and on_databricks)


def _on_spark(config: RayConfig) -> AbstractContextManager[None]:
    # Not at the top: whoever has Ray need not have pyspark.
    from recsys_ray.launch.ray_on_spark import ray_on_spark

    return ray_on_spark(config)
