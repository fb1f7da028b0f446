"""The end of a run, on rank 0: test metrics, weights, outcome.json, report.html, all of it in MLflow too."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from recsys_ray.config import TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory, copy_encoding
from recsys_ray.models.task import Evaluation
from recsys_ray.reporting.report import RunRecord, write_report
from recsys_ray.sharding.planner import plan_shards
from recsys_ray.training.checkpointing import weights_bytes
from recsys_ray.training.loop import Run
from recsys_ray.training.progress import Progress


def finish(run: Run, dataset: DatasetDirectory, test: Evaluation | None, best: int) -> None:
    """On rank 0. `test` is None where the dataset has no test rows; `best` is the step of the best checkpoint."""
    config, progress, tracker, run_dir = run.config, run.progress, run.tracker, Path(run.config.run_dir)
    test = test or Evaluation({})
    outcome: dict[str, Any] = {
        **{f"test_{name}": value for name, value in test.metrics.items()},
        "rows_per_second": _rows_per_second(progress),
        "data_wait_share": progress.seconds.get("data", 0.0) / max(_training_seconds(progress), 1e-9),
        "world_size": run.world.size,
        "device": run.world.device.type,
        "launcher": config.launch.engine,
        "mlflow_run_id": progress.mlflow_run_id,
        "epochs": progress.epoch,
        "steps": progress.step,
        "best_checkpoint": f"step_{best}",
        "headline": list(run.task.headline),
        "comparison": test.comparison,
    }
    weights = run_dir / "model" / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    copy_encoding(dataset, weights.parent)
    run.checkpoints.export_weights(best, weights)
    if weights_bytes(run.model) < config.tracking.log_weights_below_mib << 20:
        tracker.file(weights, "model")
    tracker.metrics(progress.step, {f"test/{name}": value for name, value in test.metrics.items()})
    tracker.metrics(progress.step, {"rows_per_second": outcome["rows_per_second"]})
    report = write_report(run_dir, _record(config, outcome, run.model, dataset, test, progress))
    tracker.file(report)
    tracker.text(json.dumps(outcome, indent=2), "outcome.json")
    tracker.end("FINISHED")
    partial = run_dir / ".outcome.json"
    partial.write_text(json.dumps(outcome, indent=2) + "\n")
    partial.replace(run_dir / "outcome.json")


def _training_seconds(progress: Progress) -> float:
    return progress.seconds.get("data", 0.0) + progress.seconds.get("step", 0.0)


def _rows_per_second(progress: Progress) -> float:
    """Rows over the time they took, each logged point weighted by its steps."""
    ends = [0.0, *(point["step"] for point in progress.training)]
    steps = [after - before for before, after in pairwise(ends)]
    seconds = sum(count / point["rows_per_second"] for count, point in zip(steps, progress.training, strict=True))
    return sum(steps) / seconds if seconds else 0.0


def _record(
    config: TrainConfig,
    outcome: dict[str, Any],
    model: Any,
    dataset: DatasetDirectory,
    test: Evaluation,
    progress: Progress,
) -> RunRecord:
    return RunRecord(
        outcome=outcome,
        training=progress.training,
        validation=progress.validation,
        calibration_curve=test.calibration_curve,
        comparison=test.comparison,
        plan=[dataclasses.asdict(shard) for shard in plan_shards(model)],
        seconds=progress.seconds,
        config=dataclasses.asdict(config),
        dataset=dataset.summary,
    )
