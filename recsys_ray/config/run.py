"""The configuration of one training run, in which all other settings come together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from recsys_ray.config.data import DataConfig
from recsys_ray.config.launch import LaunchConfig
from recsys_ray.config.training import CheckpointConfig, LoopConfig, OptimizerConfig, ShardingConfig, TrackingConfig


@dataclass(frozen=True)
class ModelConfig:
    """The settings that every model has. Each model extends them with its own."""

    embedding_dim: int = 16
    """Numbers in each row of the embedding tables."""
    init_range: float = 0.0
    """Embeddings start uniformly distributed in ± this; 0: in ± 1/sqrt(rows of the table)."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines one training run."""

    run_dir: str = ""
    """Where everything ends up: checkpoints, outcome.json, report.html. Running again in it resumes."""
    init_from: str = ""
    """The run directory (or its `model` folder) of an earlier run whose weights a new run starts from, matched by name."""
    register: str = ""
    """The name under which the trained model is registered in MLflow, alias `candidate`; empty: it is not registered."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(kw_only=True)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    @property
    def grace_seconds(self) -> float:
        """The time that SIGTERM leaves the workers to finish their step and write a checkpoint."""
        return self.checkpoint.grace_seconds


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Makes the paths of a run absolute, since workers may have another working directory. URLs stay as they are.

    Raises ValueError for a run directory that is a URL.
    """
    if "://" in config.run_dir:
        raise ValueError(
            f"--run-dir {config.run_dir} is a URL: wants a folder on a file system that all workers share (a mount); "
            "--checkpoint.folder takes a URL"
        )
    folder = replace(config.checkpoint, folder=_absolute(config.checkpoint.folder))
    return replace(config, run_dir=_absolute(config.run_dir), init_from=_absolute(config.init_from), checkpoint=folder)


def _absolute(path: str) -> str:
    return path if not path or "://" in path else str(Path(path).absolute())
