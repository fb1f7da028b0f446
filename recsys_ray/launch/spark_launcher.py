"""Launches workers by Spark's TorchDistributor: as processes on the driver's machine, or one Spark task each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from recsys_ray.config import LaunchConfig
from recsys_ray.environment import environment
from recsys_ray.launch.spark_cluster import active_session, check_slots, has_gpus, new_session, on_driver
from recsys_ray.launch.worker import Config, launched_run, run_worker, thread_settings, without_gpus
from recsys_ray.launch.worker_records import clear_records, explain_failure, has_record
from recsys_ray.spark_jobs import run_in_group


class SparkLauncher:
    """A Launcher by TorchDistributor in a Spark session."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def run(self, work: Callable[[Config], None], config: Config) -> None:
        """Runs `work` once on every worker. Raises WorkerFailed."""
        distributor = self._distributor(config.launch)
        with launched_run(config):
            self._run(distributor, work, config)

    def _run(self, distributor: TorchDistributor, work: Callable[[Config], None], config: Config) -> None:
        for attempts_left in range(config.launch.max_failures, -1, -1):
            clear_records(config.run_dir)
            run = partial(distributor.run, _run_once, work, config, uuid.uuid4().hex)
            try:
                if distributor.local_mode:
                    with without_gpus(not distributor.use_gpu), environment(thread_settings()):
                        run()
                else:
                    run_in_group(self._spark, "recsys_ray workers", run)
                break
            except Exception as error:
                if not attempts_left:
                    raise explain_failure(config.run_dir) or error from None

    def _distributor(self, launch: LaunchConfig) -> TorchDistributor:
        """Raises ValueError if Spark has no room for the workers."""
        driver = on_driver(self._spark, launch)
        gpus = bool(has_gpus(self._spark, driver) if launch.gpus_per_worker is None else launch.gpus_per_worker)
        try:
            distributor = TorchDistributor(num_processes=launch.workers, local_mode=driver, use_gpu=gpus)
        except RuntimeError as error:
            raise ValueError(f"--launch.gpus-per-worker {launch.gpus_per_worker} on Spark: {error}") from error
        if distributor.num_processes < launch.workers:
            raise ValueError(f"{launch.workers} workers need a GPU each, and the driver has {distributor.num_processes}")
        if not driver:
            check_slots(self._spark, distributor.num_tasks)
        return distributor


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[SparkLauncher]:
    """Connects to Spark."""
    with active_session(partial(new_session, config)) as spark:
        yield SparkLauncher(spark)


def _run_once(work: Callable[[Config], None], config: Config, attempt: str) -> None:
    """Runs a worker, unless it has been run in this attempt.

    Spark starts a failed stage again by itself, up to four times, but how often is for --launch.max-failures to say.
    """
    rank = int(os.environ["RANK"])
    if has_record(config.run_dir, attempt, rank):
        raise RuntimeError(f"worker rank {rank} has failed before")
    run_worker(work, config, attempt)
