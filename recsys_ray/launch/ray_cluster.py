"""Connects to the Ray cluster to run on: at RAY_ADDRESS, started on the nodes of a Spark cluster, or this machine alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray

from recsys_ray.config import RayConfig
from recsys_ray.ray_address import check_ray_address


@contextmanager
def ray_cluster(config: RayConfig) -> Iterator[None]:
    """Connects to a Ray cluster while the body runs, and stops in the end what it has started.

    Raises ConnectionError where no cluster answers at RAY_ADDRESS.
    """
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
    """Connects, and keeps our handler of SIGTERM: Ray takes the signal for itself and would end the process at once."""
    check_ray_address()
    before = signal.getsignal(signal.SIGTERM)
    # A Ray of its own, which ends with the job, needs no dashboard: starting it takes 4 s of a core.
    ray.init(include_dashboard=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _wants_spark(config: RayConfig) -> bool:
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ and "RAY_ADDRESS" not in os.environ
    return config.on_spark == "always" or (config.on_spark == "auto" and on_databricks)


def _on_spark(config: RayConfig) -> AbstractContextManager[None]:
    # Not at the top: Ray works without pyspark.
    from recsys_ray.launch.ray_on_spark import ray_on_spark

    return ray_on_spark(config)
