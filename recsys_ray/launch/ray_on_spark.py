"""Starts Ray on the nodes of a Spark cluster, as on Databricks: a head on the driver, the other nodes as tasks of a Spark job."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import SparkSession
from ray.util.spark import setup_ray_cluster, shutdown_ray_cluster

from recsys_ray.compat.ray_compat import enable_token_authentication
from recsys_ray.config import RayConfig
from recsys_ray.launch.spark_cluster import active_session


@contextmanager
def ray_on_spark(config: RayConfig) -> Iterator[None]:
    """Starts from spark_nodes[0] to spark_nodes[1] Ray nodes, as the work needs them, and stops them after the body.

    RAY_ADDRESS is set for the body. Raises ValueError if a node's CPUs are given and its GPUs are not, or the other way round.
    """
    if (config.spark_cpus_per_node is None) != (config.spark_gpus_per_node is None):
        raise ValueError("--launch.ray.spark-cpus-per-node and --launch.ray.spark-gpus-per-node: give both, or neither")
    # Ray's start script looks for the `ray` command on PATH, and the environment may not have been activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # `ray start`, which starts the head, wants a token if it finds one. Then this process must show it.
    enable_token_authentication()
    fewest, most = config.spark_nodes
    with active_session(SparkSession.builder.appName("recsys_ray").getOrCreate):
        setup_ray_cluster(
            min_worker_nodes=fewest,
            max_worker_nodes=most,
            num_cpus_worker_node=config.spark_cpus_per_node,
            num_gpus_worker_node=config.spark_gpus_per_node,
        )
        try:
            yield
        finally:
            shutdown_ray_cluster()
