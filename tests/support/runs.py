"""Training runs of a small DLRM: their config, what they log, and their results read back from the run directory."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import CheckpointConfig, DataConfig, LoopConfig, ShardingConfig, TrackingConfig, TrainConfig
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.evaluation import binary_metrics
from recsys_ray.models.evaluation.binary_metrics import BinaryPredictions
from recsys_ray.training.train import train
from tests.support.workers import mlflow_uri

PREDICTIONS_FILE = "predictions.npy"


def dlrm_config(dataset: Path, run_dir: Path, every_steps: int = 0, **loop: int) -> TrainConfig:
    return TrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=str(dataset)),
        model=DLRMConfig(interaction="dcn", embedding_dim=8, dense_layers=(16,), over_layers=(32,), cross_rank=8),
        train=LoopConfig(**{"epochs": 1, "global_batch": 1024, "log_every": 1, "patience": 0, **loop}),
        checkpoint=CheckpointConfig(every_steps=every_steps),
        sharding=ShardingConfig(types=("row_wise",)),
        tracking=TrackingConfig(uri=mlflow_uri(run_dir.parent)),
    )


def logged_train(config: TrainConfig) -> None:
    """Calls train(config) and writes each rank's log to a file in the run directory."""
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(Path(config.run_dir) / f"log-{os.environ['RANK']}")
    logging.getLogger("recsys_ray").addHandler(handler)
    train(config)


def train_and_keep_predictions(config: TrainConfig) -> None:
    """Calls train(config) and keeps what the evaluations predicted, those of all ranks together.

    The last evaluation is that of the test split, with the weights of the best checkpoint. `evaluated_predictions` reads it.
    """
    predict_split = binary_metrics.predict_split

    def kept(*args: Any) -> BinaryPredictions | None:
        found = predict_split(*args)
        if found is not None:
            np.save(Path(config.run_dir) / PREDICTIONS_FILE, np.stack(found))
        return found

    binary_metrics.predict_split = kept
    train(config)


def evaluated_predictions(run_dir: Path) -> BinaryPredictions:
    """Returns what the evaluation of the test split predicted for each of its rows, in the order of the stream."""
    return BinaryPredictions(*np.load(run_dir / PREDICTIONS_FILE))


def log_of(run_dir: Path, rank: int = 0) -> str:
    """Returns what a rank logged in all calls of logged_train for this run directory."""
    return (run_dir / f"log-{rank}").read_text()


def newest_progress(run_dir: Path) -> dict[str, Any]:
    """Returns the training progress that the newest checkpoint holds."""
    store = CheckpointStore(str(run_dir / "checkpoints"))
    return store.marker(store.committed()[0])["note"]["progress"]


def losses(run_dir: Path) -> np.ndarray:
    """Returns the logged training losses in order of steps."""
    return np.array([point["loss"] for point in newest_progress(run_dir)["training"]])


def outcome(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "outcome.json").read_text())


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Returns the exported model's tensors by name."""
    bundle = open_bundle(run_dir)
    return {name: bundle.read_tensor(name) for name in bundle.manifest.tensors}


def same_weights(left: Path, right: Path) -> bool:
    """Whether two runs exported the same tensors, bit by bit."""
    expected, found = weights(left), weights(right)
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def copied(run_dir: Path, to: Path) -> Path:
    """Copies a run directory and the MLflow database beside it to the run directory `to`, and returns that."""
    shutil.copytree(run_dir, to)
    shutil.copy2(run_dir.parent / "mlflow.db", to.parent)
    return to
