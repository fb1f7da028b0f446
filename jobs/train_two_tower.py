"""Train a Two Tower, the retrieval model: from Parquet or a prepared dataset to checkpoints, metrics and a report.

    python jobs/train_two_tower.py                               # MovieLens 1M: fetched, prepared, trained
    python jobs/train_two_tower.py --data.path datasets/clicks   # a directory written by jobs/prepare_data.py
    python jobs/train_two_tower.py --data.parquet data/clicks --data.split.by time      # raw Parquet, a schema.json beside it
    python jobs/train_two_tower.py --launch.engine local --launch.workers 2 # no cluster; or --launch.engine spark
    ray job submit --working-dir . -- python jobs/train_two_tower.py --data.path /shared/clicks --launch.workers 8

The schema must say which columns tell users and items apart ("key": true). Every knob is in recsys_ray/config.py and `--help`.
Running again with the same --run-dir goes on where the run stopped.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from recsys_ray.config import (
    DataConfig,
    LaunchConfig,
    LoopConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
    TwoTowerConfig,
    with_absolute_paths,
)
from recsys_ray.data.prepare.pipeline import dataset_for
from recsys_ray.launch.launcher import launcher
from recsys_ray.launch.worker import WorkerFailed
from recsys_ray.reporting.summary import summary
from recsys_ray.reporting.tracking.mlflow_tracker import tracking_uri
from recsys_ray.training.train import train

CONFIG = TrainConfig(
    run_dir="runs/two_tower",
    data=DataConfig(split=SplitConfig(by="leave_one_out")),
    model=TwoTowerConfig(embedding_dim=64, pooling="attention", query_layers=(128,), candidate_layers=(), dropout=0.2, ials=True),
    optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.1, dense_learning_rate=1e-3),
    train=LoopConfig(epochs=5, global_batch=1024),
    launch=LaunchConfig(engine="ray", workers=1),
)


def main(config: TrainConfig) -> None:
    config = with_absolute_paths(config)
    with launcher(config.launch) as engine:
        path = dataset_for(config.data, config.run_dir, "spark" if config.launch.engine == "spark" else "ray")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(Path(path).absolute())))
        engine.run(train, config)
    print(summary(json.loads(Path(config.run_dir, "outcome.json").read_text())))
    print(f"report   {config.run_dir}/report.html")
    print(f"MLflow   mlflow ui --backend-store-uri {tracking_uri(config.tracking, Path(config.run_dir))}")


if __name__ == "__main__":
    try:
        main(tyro.cli(TrainConfig, default=CONFIG, description=__doc__, config=(tyro.conf.AvoidSubcommands,)))
    except (ValueError, OSError, WorkerFailed) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")
    except KeyboardInterrupt:
        print(f"{Path(__file__).stem}: interrupted; run it again to go on after the last checkpoint", file=sys.stderr)
        sys.exit(130)
