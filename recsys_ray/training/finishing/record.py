"""The record of a finished run, on rank 0: outcome.json, report.html, and the same in the tracker."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.files.json_text import json_text
from recsys_ray.models.task import Evaluation
from recsys_ray.reporting.outcome import OUTCOME_FILE, mean_rows_per_second, with_undefined, write_outcome
from recsys_ray.reporting.report import write_report
from recsys_ray.reporting.run_record import RunRecord
from recsys_ray.sharding.placement import table_shards
from recsys_ray.training.loop import Run


def record_outcome(run: Run, dataset: DatasetDirectory, test: Evaluation | None, best_step: int) -> dict[str, Any]:
    """Writes the outcome and the report, and returns the outcome. `test` is None where the dataset has no test rows."""
    run_dir, tracker, step = Path(run.config.run_dir), run.tracker, run.progress.step
    test = test or Evaluation({})
    outcome = with_undefined(_outcome(run, test, best_step))
    tracker.log_metrics(step, {f"test/{name}": value for name, value in test.metrics.items()})
    tracker.log_metrics(step, {"rows_per_second": outcome["rows_per_second"]})
    tracker.log_file(write_report(run_dir, _record(run, outcome, dataset, test)))
    tracker.log_text(json_text(outcome), OUTCOME_FILE)
    write_outcome(run_dir, outcome)
    return outcome


def _outcome(run: Run, test: Evaluation, best_step: int) -> dict[str, Any]:
    progress = run.progress
    waited, stepped = progress.seconds.get("data", 0.0), progress.seconds.get("step", 0.0)
    return {
        **{f"test_{name}": value for name, value in test.metrics.items()},
        "rows_per_second": mean_rows_per_second(progress.training),
        "data_wait_share": waited / max(waited + stepped, 1e-9),
        "world_size": run.world.size,
        "device": run.world.device.type,
        "launcher": run.config.launch.engine,
        "tracking_run_id": progress.tracking_run_id,
        "epochs": progress.epoch,
        "steps": progress.step,
        "best_checkpoint": f"step_{best_step}",
        "headline": list(run.task.headline),
        "comparison": test.comparison,
    }


def _record(run: Run, outcome: dict[str, Any], dataset: DatasetDirectory, test: Evaluation) -> RunRecord:
    return RunRecord(
        outcome=outcome,
        training=run.progress.training,
        validation=run.progress.validation,
        calibration_curve=test.calibration_curve,
        comparison=test.comparison,
        plan=[dataclasses.asdict(shard) for shard in table_shards(run.model)],
        seconds=run.progress.seconds,
        config=dataclasses.asdict(run.config),
        dataset=dataset.summary,
        loss_name=run.task.loss_name,
        objective=run.task.objective,
        lower_is_better=run.task.lower_is_better,
    )
