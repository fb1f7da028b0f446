r"""Trains a DLRM, the ranking model: from Parquet or a prepared dataset to checkpoints, metrics and a report.

    python jobs/train_dlrm.py                                    # MovieLens 1M: fetched, prepared, trained
    python jobs/train_dlrm.py --data.path datasets/clicks        # a directory written by jobs/prepare_data.py
    python jobs/train_dlrm.py --data.parquet data/clicks         # raw Parquet with a schema.json next to it
    python jobs/train_dlrm.py --launch.engine local --launch.workers 2      # no cluster; or --launch.engine spark
    ray job submit --working-dir . -- python jobs/train_dlrm.py \
        --data.path /shared/datasets/clicks --run-dir /shared/runs/clicks --launch.workers 8

By default it trains the variant with a cross network, DCNv2; `--model.interaction dot` selects the original DLRM.

The job connects to the engine's cluster or starts one, prepares the dataset if necessary, and runs `train(config)`
(recsys_ray/training/train.py) on every worker: join the process group, shard the model, stream row blocks, train, evaluate,
checkpoint. Running it again with the same --run-dir resumes the run. On a cluster, dataset and run directory must be on storage
that all nodes share.

`--help` lists all settings. Those of the model are in recsys_ray/config/dlrm.py, all others beside it.
"""

from __future__ import annotations

from recsys_ray.config import LaunchConfig, LoopConfig, OptimizerConfig, TrainConfig
from recsys_ray.config.dlrm import DLRMConfig
from recsys_ray.training.job import fetch_movielens, run_training_job

CONFIG = TrainConfig(
    run_dir="runs/dlrm",
    model=DLRMConfig(interaction="dcn", embedding_dim=16),
    optimizer=OptimizerConfig(sparse_learning_rate=0.05, dense_learning_rate=1e-3),
    train=LoopConfig(epochs=5, global_batch=4096),
    launch=LaunchConfig(engine="ray", workers=1),
)

if __name__ == "__main__":
    run_training_job(CONFIG, __doc__, fetch_sample=fetch_movielens)
