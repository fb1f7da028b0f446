"""Ray Train (V2): a TorchTrainer, fixed or elastic, on the Ray cluster that `ray_cluster` connects to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from ray.exceptions import OutOfMemoryError
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchConfig
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from recsys_ray.config import LaunchConfig, TrainConfig
from recsys_ray.launch.ray_capacity import wait_for_capacity, worker_resources
from recsys_ray.launch.ray_cluster import ray_cluster
from recsys_ray.launch.worker import Train, attempts, failure, run_worker

ELASTIC_START_SECONDS = "10"
"""Ray counts a lost node for up to 20 s more, and asks for as many workers as before; after its usual 60 s it would ask again."""


class RayLauncher:
    def run(self, train: Train, config: TrainConfig) -> None:
        bundle = worker_resources(config.launch)
        wait_for_capacity(bundle, config.launch)
        trainer = TorchTrainer(
            lambda: run_worker(train, config),
            scaling_config=scaling(config.launch, bundle),
            torch_config=TorchConfig(backend="nccl" if bundle.get("GPU") else "gloo"),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(config.run_dir).absolute()),
                failure_config=FailureConfig(max_failures=config.launch.max_failures),
                worker_runtime_env=_runtime_env(config.launch.ray.runtime_env, gpus="GPU" in bundle),
            ),
        )
        try:
            with attempts(config), _ctrl_c_as_usual(), patch.dict(os.environ, _settings(config.launch)):
                trainer.fit()
        except TrainingFailedError as error:
            raise failure(config.run_dir, _died(error)) or error from None


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[RayLauncher]:
    with ray_cluster(config.ray):
        yield RayLauncher()


def scaling(launch: LaunchConfig, bundle: dict[str, float]) -> ScalingConfig:
    return ScalingConfig(
        num_workers=launch.workers if launch.min_workers is None else (launch.min_workers, launch.workers),
        use_gpu="GPU" in bundle,
        resources_per_worker=bundle,
        placement_strategy=launch.ray.placement,
        elastic_resize_monitor_interval_s=launch.ray.resize_seconds,
    )


@contextmanager
def _ctrl_c_as_usual() -> Iterator[None]:
    """Ray Train handles Ctrl-C itself: it ends the workers, and then this process with exit code 0, as if all were done."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _settings(launch: LaunchConfig) -> dict[str, str]:
    """Of Ray Train, which has them in the environment only. Without the first, paths would mean others on a worker."""
    elastic = {WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: ELASTIC_START_SECONDS} if launch.min_workers is not None else {}
    return {RAY_CHDIR_TO_TRIAL_DIR: "0"} | elastic


def _runtime_env(file: str, gpus: bool) -> dict[str, Any]:
    """Ray hides no GPU from a worker that asked for none, and one that sees a GPU takes it."""
    wanted = yaml.safe_load(Path(file).read_text()) if file else {}
    return wanted | {"env_vars": wanted.get("env_vars", {}) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}


def _died(error: TrainingFailedError) -> dict[int, str]:
    """Workers that vanished: rank -> why, where Ray knows."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = {rank: getattr(found, "health_check_failure", None) for rank, found in failures.items()}
    return {rank: _cause(cause) for rank, cause in causes.items() if cause is not None}


def _cause(error: Exception) -> str:
    if isinstance(error, OutOfMemoryError):
        return f"Ray, for want of memory: {error}"
    lost = [line.strip() for line in str(error).splitlines() if "node has died" in line or "node was" in line]
    return f"the loss of its node: {' '.join(lost)}" if lost else ""
