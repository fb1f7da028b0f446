"""Ray Train (V2): a TorchTrainer, fixed or elastic, on the Ray cluster that `ray_cluster` connects to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from recsys_ray.config import LaunchConfig, TrainConfig
from recsys_ray.launch.ray_cluster import ray_cluster, wait_for_capacity
from recsys_ray.launch.worker import clear_records, failure, run_worker


class RayLauncher:
    def run(self, train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
        bundle = worker_resources(config.launch)
        wait_for_capacity(bundle, config.launch)
        clear_records(config.run_dir)
        trainer = TorchTrainer(
            lambda: run_worker(train, config),
            scaling_config=scaling(config.launch, bundle),
            torch_config=TorchConfig(backend="nccl" if bundle.get("GPU") else "gloo"),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(config.run_dir).absolute()),
                failure_config=FailureConfig(max_failures=config.launch.max_failures),
                worker_runtime_env=_runtime_env(config.launch.ray.runtime_env),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise failure(config.run_dir, _died(error)) or error from None
        clear_records(config.run_dir)


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[RayLauncher]:
    with ray_cluster(config.ray):
        yield RayLauncher()


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """What one worker reserves."""
    gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": launch.cpus_per_worker, **({"GPU": gpus} if gpus else {}), **launch.ray.resources}


def scaling(launch: LaunchConfig, bundle: dict[str, float]) -> ScalingConfig:
    return ScalingConfig(
        num_workers=launch.workers if launch.min_workers is None else (launch.min_workers, launch.workers),
        use_gpu="GPU" in bundle,
        resources_per_worker=bundle,
        placement_strategy=launch.ray.placement,
        elastic_resize_monitor_interval_s=launch.ray.resize_seconds,
    )


def _runtime_env(file: str) -> dict[str, Any]:
    return yaml.safe_load(Path(file).read_text()) if file else {}


def _died(error: TrainingFailedError) -> dict[int, str]:
    """Workers that vanished: rank -> why, where Ray knows (it does when its own memory monitor killed them)."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = {rank: getattr(found, "health_check_failure", None) for rank, found in failures.items()}
    memory = {rank: f"Ray, for want of memory: {cause}" for rank, cause in causes.items() if isinstance(cause, OutOfMemoryError)}
    return {rank: "" for rank, cause in causes.items() if cause is not None} | memory
