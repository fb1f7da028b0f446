"""Measures the effect of the logQ correction: the same Two Tower with and without it, on choices skewed by popularity.

    python benchmarks/log_q.py [--users 20000] [--items 5000] [--skew 1.0]

Users choose by taste times popularity (recsys_ray/datasets/choices.py), and the latest choice is held out. In-batch negatives are
sampled by popularity too, so without the correction a model learns taste alone. Recall and NDCG are over the whole catalogue, the
mean over seeds.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from recsys_ray.config import (
    DataConfig,
    LaunchConfig,
    LoopConfig,
    OptimizerConfig,
    PrepareConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
)
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.reporting.summary import comparison_table
from recsys_ray.training.train import train


@dataclass(frozen=True)
class Arguments:
    users: int = 20_000
    items: int = 5_000
    skew: float = 1.0
    seeds: int = 3
    work: Path = Path("runs/log-q")


def outcome(work: Path, path: str, log_q: bool, seed: int) -> dict[str, Any]:
    run_dir = (work / f"run-{log_q}-{seed}").absolute()
    shutil.rmtree(run_dir, ignore_errors=True)
    config = TrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=path),
        model=TwoTowerConfig(embedding_dim=32, query_layers=(64,), candidate_layers=(), log_q=log_q, metrics_at=(10, 100)),
        optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.1),
        train=LoopConfig(epochs=6, global_batch=1024, patience=0, log_every=500, seed=seed),
        tracking=TrackingConfig(experiment="log-q"),
        launch=LaunchConfig(engine="local"),
    )
    with launcher(config.launch) as engine:
        engine.run(train, config)
    return json.loads((run_dir / "outcome.json").read_text())


def mean_of(outcomes: list[dict[str, Any]], name: str, place: int) -> dict[str, Any]:
    """Returns the entry at `place` of the comparisons, averaged over the outcomes."""
    metrics = [one["comparison"][place]["metrics"] for one in outcomes]
    return {"name": name, "metrics": {key: float(np.mean([one[key] for one in metrics])) for key in metrics[0]}}


def main(arguments: Arguments) -> None:
    size = f"{arguments.users}-{arguments.items}-{arguments.skew}"
    raw = choices.generate_choices(arguments.work / f"raw-{size}", arguments.users, arguments.items, skew=arguments.skew)
    tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
    path = prepare(PrepareConfig("ray", *tables, out=str(arguments.work / size), split=SplitConfig(by="leave_one_out"))).root
    found = {
        log_q: [outcome(arguments.work, str(path.absolute()), log_q, seed) for seed in range(arguments.seeds)]
        for log_q in (True, False)
    }
    table = [
        mean_of(found[True], "with logQ", 0),
        mean_of(found[False], "without", 0),
        mean_of(found[True], "popularity", 1),
    ]
    size = f"{arguments.users:,} users, {arguments.items:,} items"
    print(f"\n{size}, popularity like rank^-{arguments.skew}, mean of {arguments.seeds} seeds")
    print("\n".join(comparison_table(table)))
    with_it, without = (entry["metrics"]["ndcg_at_10"] for entry in table[:2])
    print(f"NDCG@10 with over without: {with_it / without:.2f}")
    print(json.dumps({"benchmark": "log_q", "seeds": arguments.seeds, "rows": table}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
