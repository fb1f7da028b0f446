"""Prepares and trains on real Criteo rows with nulls, and prints the test AUC. There is no published table for this sample.

python benchmarks/criteo_sample.py [--parquet ../shared/data/criteo-sample/criteo_80k.parquet] [--work runs/criteo-sample]
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro

from recsys_ray.config import DataConfig, LoopConfig, OptimizerConfig, PrepareConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import criteo
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.training.train import train


@dataclass(frozen=True)
class Arguments:
    parquet: Path = Path("../shared/data/criteo-sample/criteo_80k.parquet")
    work: Path = Path("runs/criteo-sample")
    workers: int = 1


def main(arguments: Arguments) -> None:
    if not arguments.parquet.exists():
        sys.exit(f"criteo_sample: skipped, {arguments.parquet} is not here: name the sample with --parquet")
    work = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    schema = work / "schema.json"
    schema.write_text(criteo.criteo_schema("int", num_embeddings=1 << 16).to_json())
    ray.init(ignore_reinit_error=True)
    dataset = prepare(PrepareConfig(parquet=str(arguments.parquet), schema=str(schema), out=str(work / "dataset")))
    config = TrainConfig(
        run_dir=str(work / "run"),
        data=DataConfig(path=str(dataset.root)),
        model=DLRMConfig(interaction="dcn", embedding_dim=16, init_range=0.01),
        optimizer=OptimizerConfig(sparse_learning_rate=0.02, dense_learning_rate=1e-3, dense_weight_decay=1e-5),
        train=LoopConfig(epochs=4, global_batch=1024, patience=1),
    )
    with launcher(config.launch) as engine:
        engine.run(train, config)
    outcome = json.loads((work / "run" / "outcome.json").read_text())
    figures = {
        "rows_in": dataset.summary["rows_in"],
        "rejected": dataset.summary["rejected"],
        **{name: outcome[name] for name in ("test_auc", "test_ne", "test_logloss", "rows_per_second")},
    }
    print("\nCriteo sample")
    for name, value in figures.items():
        print(f"{name:<18}{value:>14,.4f}" if isinstance(value, float) else f"{name:<18}{value:>14,}")
    print(json.dumps({"benchmark": "criteo_sample", **figures}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
