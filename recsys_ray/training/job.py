"""The training job that every jobs/train_*.py runs: prepare the data where need be, launch the workers, print the outcome.

What takes seconds to import, such as torch, is imported by whoever needs it: the workers, or the preparation of raw data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.config import PrepareConfig, TrainConfig, with_absolute_paths
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.launch.launcher import launcher
from recsys_ray.reporting.outcome import read_outcome
from recsys_ray.reporting.summary import outcome_text
from recsys_ray.reporting.tracking.tracker import check_tracking, viewing_hint

FetchSample = Callable[[Path], Path]
"""Fetches a data set into a new folder below the one given and returns its folder, laid out as recsys_ray.datasets says."""


def run_training_job(default: TrainConfig, description: str, fetch_sample: FetchSample) -> None:
    """Runs a training job: `default`, overridden by the command line, whose help begins with `description`.

    `fetch_sample` provides the data where the command line names none.
    """
    with readable_errors("run it again to resume from the last checkpoint"):
        flags = (tyro.conf.AvoidSubcommands,)
        launch_training(tyro.cli(TrainConfig, default=default, description=description, config=flags), fetch_sample)


def launch_training(config: TrainConfig, fetch_sample: FetchSample) -> None:
    """Prepares the data, trains on all workers, and prints the outcome with where to find report, record and registered model."""
    config = with_absolute_paths(config)
    check_tracking(config)
    if config.register:
        # Not at the top: MLflow takes a second to import.
        from recsys_ray.training.finishing.registration import check_registration, register_run

        check_registration(config)
    with launcher(config.launch) as cluster:
        path = str(dataset_to_train_on(config, fetch_sample).absolute())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
        cluster.run(train_on_worker, config)
    print(outcome_text(read_outcome(config.run_dir)))
    print(f"report   {config.run_dir}/report.html")
    if hint := viewing_hint(config):
        print(hint)
    if config.register:
        print(f"model    {register_run(config)}")


def train_on_worker(config: TrainConfig) -> None:
    """Runs `train(config)` on a worker, and has only the worker import what it needs."""
    from recsys_ray.training.train import train

    train(config)


def fetch_movielens(folder: Path) -> Path:
    """Fetches MovieLens 1M into a new folder below `folder`, as a FetchSample."""
    from recsys_ray.datasets import movielens

    return movielens.fetch(folder / "movielens-1m")


def dataset_to_train_on(config: TrainConfig, fetch_sample: FetchSample) -> Path:
    """Returns the dataset directory named by the configuration, or one prepared in the run directory."""
    engine: Literal["ray", "spark"] = "spark" if config.launch.engine == "spark" else "ray"
    out, data = str(Path(config.run_dir) / "dataset"), config.data
    if data.path:
        return DatasetDirectory.open(data.path).root
    # Not at the top: a run on a prepared dataset has no use for it and its pandas.
    from recsys_ray.data.prepare.pipeline import dataset_for, prepare

    if data.parquet:
        return dataset_for(data, out, engine)
    raw = fetch_sample(Path(config.run_dir).parent)
    print(f"neither --data.path nor --data.parquet is given: training on the sample data set in {raw}", flush=True)
    interactions, users, items = (str(raw / f"{table}.parquet") for table in ("interactions", "users", "items"))
    return prepare(PrepareConfig(engine, interactions, users, items, out=out, split=data.split)).root
