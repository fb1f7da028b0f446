"""Launches workers as processes of this machine with torch elastic, without a cluster."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
from torch.distributed.launcher.api import elastic_launch

from recsys_ray.config import LaunchConfig
from recsys_ray.environment import environment
from recsys_ray.launch.worker import Config, launched_run, run_worker, thread_settings, without_gpus
from recsys_ray.launch.worker_records import RECORDS_FOLDER, explain_failure

HANDLED_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"
"""By torch elastic: all but SIGTERM, which would end the workers before they could save."""
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Otherwise all attempts share one store, and workers started again find the addresses of those before them: seen to hang."""


class LocalLauncher:
    """A Launcher by torch elastic."""

    def run(self, work: Callable[[Config], None], config: Config) -> None:
        """Runs `work` once on every worker. Raises WorkerFailed."""
        launch = config.launch
        hide_gpus = not _gpus_needed(launch)
        logs = Path(config.run_dir, RECORDS_FOLDER, "logs")
        variables = OWN_STORE | thread_settings()
        with launched_run(config), without_gpus(hide_gpus), environment(variables), _temporary_files_in(logs):
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
                elastic_launch(elastic, run_worker)(work, config)
            except ChildFailedError as error:
                killed = {rank: child.signal_name() for rank, child in error.failures.items() if child.exitcode < 0}
                raise explain_failure(config.run_dir, killed) or error from None
            except SignalException as signal:
                raise KeyboardInterrupt(str(signal)) from None


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[LocalLauncher]:
    """Yields the launcher; there is no cluster to connect to."""
    yield LocalLauncher()


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Makes temporary files of the body in `folder`, in the run directory, where they are cleared away.

    Those of torch elastic would outlive processes that are killed, and it does not let a caller place them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _gpus_needed(launch: LaunchConfig) -> int:
    """The GPUs that all workers take together. Raises ValueError if this machine has fewer."""
    here = torch.cuda.device_count()
    each = int(here > 0) if launch.gpus_per_worker is None else launch.gpus_per_worker
    if each not in (0, 1):
        raise ValueError(f"--launch.gpus-per-worker {each:g}: on this machine a worker takes one GPU, or none")
    needed = launch.workers * int(each)
    if needed > here:
        raise ValueError(
            f"{launch.workers} workers need {needed} GPUs, and this machine has {here}: ask for fewer workers, take "
            "--launch.gpus-per-worker 0 or --launch.engine ray on a cluster"
        )
    return needed
