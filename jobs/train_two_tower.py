r"""Trains a Two Tower, the retrieval model: from Parquet or a prepared dataset to checkpoints, metrics and a report.

    python jobs/train_two_tower.py                               # MovieLens 1M: fetched, prepared, trained
    python jobs/train_two_tower.py --data.path datasets/clicks   # a directory written by jobs/prepare_data.py
    python jobs/train_two_tower.py --data.parquet data/clicks --data.split.by time      # raw Parquet, a schema.json next to it
    python jobs/train_two_tower.py --launch.engine local --launch.workers 2 # no cluster; or --launch.engine spark
    ray job submit --working-dir . -- python jobs/train_two_tower.py \
        --data.path /shared/datasets/clicks --run-dir /shared/runs/clicks --launch.workers 8

The job does the same as jobs/train_dlrm.py, with another model. The schema must mark the id columns of users and of items
("key": true). Running the job again with the same --run-dir resumes the run.

`--help` lists all settings. Those of the model are in recsys_ray/config/two_tower.py, all others beside it.
"""

from __future__ import annotations

from recsys_ray.config import DataConfig, LaunchConfig, LoopConfig, OptimizerConfig, SplitConfig, TrainConfig
from recsys_ray.config.two_tower import TwoTowerConfig
from recsys_ray.training.job import fetch_movielens, run_training_job

CONFIG = TrainConfig(
    run_dir="runs/two_tower",
    data=DataConfig(split=SplitConfig(by="leave_one_out")),
    model=TwoTowerConfig(embedding_dim=64, pooling="attention", query_layers=(128,), candidate_layers=(), dropout=0.2, ials=True),
    optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.1, dense_learning_rate=1e-3),
    train=LoopConfig(epochs=5, global_batch=1024),
    launch=LaunchConfig(engine="ray", workers=1),
)

if __name__ == "__main__":
    run_training_job(CONFIG, __doc__, fetch_sample=fetch_movielens)
