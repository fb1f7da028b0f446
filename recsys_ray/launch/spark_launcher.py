"""Spark's TorchDistributor: workers as processes on the driver's machine, or one Spark task each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from recsys_ray.config import LaunchConfig, TrainConfig
from recsys_ray.launch.spark_cluster import active_session, check_slots, has_gpus, new_session, on_driver
from recsys_ray.launch.worker import clear_records, failure, has_record, run_worker
from recsys_ray.spark_jobs import run_in_group


class SparkLauncher:
    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def run(self, train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
        launch, driver = config.launch, on_driver(self._spark, config.launch)
        gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else has_gpus(self._spark, driver)
        if not driver:
            check_slots(self._spark, launch.workers)
        distributor = TorchDistributor(num_processes=launch.workers, local_mode=driver, use_gpu=bool(gpus))
        for attempts_left in range(launch.max_failures, -1, -1):
            clear_records(config.run_dir)
            try:
                if driver:
                    distributor.run(_run_once, train, config)
                else:
                    run_in_group(self._spark, "recsys_ray training", lambda: distributor.run(_run_once, train, config))
                break
            except Exception as error:
                if not attempts_left:
                    raise failure(config.run_dir) or error from None
        clear_records(config.run_dir)


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[SparkLauncher]:
    with active_session(partial(new_session, config)) as spark:
        yield SparkLauncher(spark)


def _run_once(train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
    """Spark starts a failed stage again by itself, up to four times; how often is for --launch.max-failures to say."""
    rank = int(os.environ["RANK"])
    if has_record(config.run_dir, rank):
        raise RuntimeError(f"worker rank {rank} has failed before")
    run_worker(train, config)
