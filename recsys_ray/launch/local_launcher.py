"""Torch elastic on this machine: worker processes and nothing else, no cluster."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
from torch.distributed.launcher.api import elastic_launch

from recsys_ray.config import LaunchConfig, TrainConfig
from recsys_ray.launch.worker import clear_records, failure, run_worker


class LocalLauncher:
    def run(self, train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
        launch = config.launch
        _check_gpus(launch)
        clear_records(config.run_dir)
        with tempfile.TemporaryDirectory() as logs, _visible_gpus(launch):
            elastic = ElasticConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=launch.workers,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=launch.max_failures,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            try:
                elastic_launch(elastic, run_worker)(train, config)
            except ChildFailedError as error:
                killed = {rank: child.signal_name() for rank, child in error.failures.items() if child.exitcode < 0}
                raise failure(config.run_dir, killed) or error from None
            except SignalException as signal:
                raise KeyboardInterrupt(str(signal)) from None
        clear_records(config.run_dir)


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[LocalLauncher]:
    yield LocalLauncher()


def _check_gpus(launch: LaunchConfig) -> None:
    wanted, here = launch.workers * (launch.gpus_per_worker or 0), torch.cuda.device_count()
    if wanted > here:
        raise ValueError(
            f"{launch.workers} workers with --launch.gpus-per-worker {launch.gpus_per_worker} need {wanted:g} GPUs, and this "
            f"machine has {here}: ask for fewer workers, or take --launch.engine ray on a cluster"
        )


@contextmanager
def _visible_gpus(launch: LaunchConfig) -> Iterator[None]:
    """Workers take a GPU where they see one."""
    with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""} if launch.gpus_per_worker == 0 else {}):
        yield
