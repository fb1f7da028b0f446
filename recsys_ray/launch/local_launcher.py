"""Torch elastic on this machine: worker processes and nothing else, no cluster."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
from torch.distributed.launcher.api import elastic_launch

from recsys_ray.config import LaunchConfig, TrainConfig
from recsys_ray.launch.worker import RECORDS, Train, attempts, failure, run_worker, without_gpus

HANDLED_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"
"""By torch elastic: all but SIGTERM, which would end the workers before they could save."""
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Else all attempts share one store, and workers started again find the addresses of those before them: seen to hang."""


class LocalLauncher:
    def run(self, train: Train, config: TrainConfig) -> None:
        launch = config.launch
        gpus = _gpus(launch)
        logs = Path(config.run_dir, RECORDS, "logs")
        with attempts(config), without_gpus(not gpus), patch.dict(os.environ, OWN_STORE), _temporary_files(logs):
            elastic = ElasticConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=launch.workers,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=launch.max_failures,
                signals_to_handle=HANDLED_SIGNALS,
                logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
            )
            try:
                elastic_launch(elastic, run_worker)(train, config)
            except ChildFailedError as error:
                killed = {rank: child.signal_name() for rank, child in error.failures.items() if child.exitcode < 0}
                raise failure(config.run_dir, killed) or error from None
            except SignalException as signal:
                raise KeyboardInterrupt(str(signal)) from None


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[LocalLauncher]:
    yield LocalLauncher()


@contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """In the run directory, where they are cleared away: those of torch elastic would outlive processes that are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with patch.object(tempfile, "tempdir", str(folder)):
        yield


def _gpus(launch: LaunchConfig) -> int:
    """GPUs that all workers take together. Raises ValueError where this machine has fewer."""
    here = torch.cuda.device_count()
    each = int(here > 0) if launch.gpus_per_worker is None else launch.gpus_per_worker
    if each not in (0, 1):
        raise ValueError(f"--launch.gpus-per-worker {each:g}: on this machine a worker takes one GPU, or none")
    wanted = launch.workers * int(each)
    if wanted > here:
        raise ValueError(
            f"{launch.workers} workers need {wanted} GPUs, and this machine has {here}: ask for fewer workers, take "
            "--launch.gpus-per-worker 0 or --launch.engine ray on a cluster"
        )
    return wanted
