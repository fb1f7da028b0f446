"""All settings as frozen dataclasses without torch, one module for each topic: data, training, launch, and run with all of them.

A training job has one literal of these; tyro overrides it on the command line
(`python jobs/train_dlrm.py --train.epochs 3 --launch.workers 8`). The models' own settings are in modules of their names.
"""

from recsys_ray.config.data import DataConfig, PrepareConfig, SplitConfig
from recsys_ray.config.launch import LaunchConfig, LaunchedConfig, RayConfig, SparkConfig
from recsys_ray.config.run import ModelConfig, TrainConfig, with_absolute_paths
from recsys_ray.config.training import CheckpointConfig, LoopConfig, OptimizerConfig, ShardingConfig, TrackingConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "LaunchConfig",
    "LaunchedConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "RayConfig",
    "ShardingConfig",
    "SparkConfig",
    "SplitConfig",
    "TrackingConfig",
    "TrainConfig",
    "with_absolute_paths",
]
