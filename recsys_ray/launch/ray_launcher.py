"""Ray Train (V2): a TorchTrainer on whatever Ray cluster this process is connected to, or a local one that it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from recsys_ray.config import TrainConfig


class RayLauncher:
    def run(self, train: Callable[[TrainConfig], None], config: TrainConfig) -> None:
        ray.init(ignore_reinit_error=True)
        launch = config.launch
        gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        trainer = TorchTrainer(
            lambda: train(config),
            scaling_config=ScalingConfig(
                num_workers=launch.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": launch.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(config.run_dir).absolute()),
                failure_config=FailureConfig(max_failures=launch.max_failures),
            ),
        )
        trainer.fit()
