"""Investigates a loss that was not finite: shows its batch, and trains again from the last checkpoint before it.

    python jobs/replay.py --run-dir runs/clicks

It reads the run's not_finite.json and config.json, trains on this machine in a temporary directory, and logs every step. The run
itself is left as it is.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.command_line import readable_errors
from recsys_ray.config import CheckpointConfig, LaunchConfig, TrackingConfig, TrainConfig
from recsys_ray.config.serialization import from_json
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import column_ranges
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.registry import model_config
from recsys_ray.training.not_finite import read_not_finite
from recsys_ray.training.train import train


@dataclass(frozen=True)
class Replay:
    """A run whose loss was not finite, to be trained again up to that step."""

    run_dir: str
    workers: int = 1
    """Processes on this machine; the order of rows is that of the run, however many it had."""


def main(job: Replay) -> None:
    """Prints what the batch holds, then trains up to the step."""
    run = Path(job.run_dir).absolute()
    found, config = read_not_finite(run), from_json((run / "config.json").read_text(), model_config)
    print(f"step {found['step']}, epoch {found['epoch'] + 1}: {len(found['blocks'])} row blocks of {found['dataset']}")
    for line in column_ranges(DatasetDirectory.open(found["dataset"]), found["blocks"]):
        print(line)
    with tempfile.TemporaryDirectory() as scratch:
        if found["checkpoint"]:
            checkpoints = config.checkpoint.folder or str(run / "checkpoints")
            CheckpointStore(checkpoints).copy(found["checkpoint"], f"{scratch}/run/checkpoints")
        replay(config, scratch, found["step"], job.workers)


def replay(config: TrainConfig, scratch: str, step: int, workers: int) -> None:
    """Trains up to `step` in a folder of its own. Raises WorkerFailed where the loss is not finite again."""
    config = dataclasses.replace(
        config,
        run_dir=f"{scratch}/run",
        train=dataclasses.replace(config.train, log_every=1, max_steps=step),
        checkpoint=CheckpointConfig(every_minutes=0),
        launch=LaunchConfig("local", workers),
        tracking=TrackingConfig(backend="none"),
    )
    with launcher(config.launch) as cluster:
        cluster.run(train, config)
    print(f"this time the loss of step {step} is finite")


if __name__ == "__main__":
    with readable_errors("the run is left as it is"):
        main(tyro.cli(Replay, description=__doc__))
