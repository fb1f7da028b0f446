"""Measures how close the whole pipeline comes to the best possible AUC, on synthetic rows whose true probabilities are known.

    python benchmarks/synthetic_teacher.py [--rows 2000000] [--work runs/synthetic-teacher]

Prints the test AUC of a DLRM and that of the teacher (the model that generated the labels) on the same test rows.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import tyro
from sklearn.metrics import roc_auc_score

from recsys_ray.compat.streaming_compat import StreamingDataset
from recsys_ray.config import DataConfig, LoopConfig, OptimizerConfig, PrepareConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import synthetic
from recsys_ray.datasets.teacher import Teacher, load_teacher, teacher_probability
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.training.train import train

TARGET = 0.005


@dataclass(frozen=True)
class Arguments:
    rows: int = 2_000_000
    work: Path = Path("runs/synthetic-teacher")


def teacher_auc(test: Path, teacher: Teacher, cache: Path) -> float:
    """Returns the AUC of the true probabilities on the rows of a test split, where identity ids are stored plus 1."""
    blocks = StreamingDataset(remote=str(test), local=str(cache))
    columns = {name: np.concatenate([blocks[i][name] for i in range(len(blocks))]) for name in blocks[0]}
    table = pa.table({name: values - 1 if name in teacher.ids else values for name, values in columns.items()})
    return float(roc_auc_score(columns["label"], teacher_probability(table, teacher)))


def main(arguments: Arguments) -> None:
    work = arguments.work.absolute()
    ray.init(ignore_reinit_error=True)
    raw = synthetic.generate_clicks(work / f"raw-{arguments.rows}", arguments.rows)
    dataset = prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(work / f"dataset-{arguments.rows}")))
    shutil.rmtree(work / "run", ignore_errors=True)
    config = TrainConfig(
        run_dir=str(work / "run"),
        data=DataConfig(path=str(dataset.root)),
        model=DLRMConfig(interaction="dot", embedding_dim=16),
        optimizer=OptimizerConfig(sparse_learning_rate=0.05, dense_learning_rate=1e-3),
        train=LoopConfig(epochs=3, global_batch=4096, patience=1, log_every=100),
    )
    with launcher(config.launch) as engine:
        engine.run(train, config)
    outcome = json.loads((work / "run" / "outcome.json").read_text())
    best = teacher_auc(dataset.root / "test", load_teacher(raw), work / "run" / "teacher-cache")
    gap = best - outcome["test_auc"]
    print(f"\n{arguments.rows:,} synthetic rows, {dataset.summary['rows']['test']:,} of them test")
    print(f"{'':<12}{'test AUC':>10}\n{'teacher':<12}{best:>10.4f}\n{'DLRM':<12}{outcome['test_auc']:>10.4f}")
    print(f"gap {gap:.4f} (target: below {TARGET})   {outcome['rows_per_second']:,.0f} rows/s")
    figures = {"rows": arguments.rows, "teacher_auc": best, "test_auc": outcome["test_auc"], "gap": gap}
    print(json.dumps({"benchmark": "synthetic_teacher", **figures, "rows_per_second": outcome["rows_per_second"]}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
