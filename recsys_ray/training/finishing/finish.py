"""The end of a run: the best checkpoint is evaluated on the test split, its outcome recorded, and the model exported.

outcome.json is written before the export, so that a failed export loses no result: running again then exports only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.distributed import broadcast_value
from recsys_ray.reporting.outcome import read_outcome
from recsys_ray.training.checkpointing.checkpoints import weights_bytes
from recsys_ray.training.finishing.export import BUNDLE_FOLDER, export_bundle, exported_step
from recsys_ray.training.loop import Run, evaluate


def evaluate_and_finish(run: Run, dataset: DatasetDirectory) -> None:
    """Evaluates and exports the best checkpoint, unless an earlier call has done so. Every worker calls it."""
    best = run.checkpoints.best(run.progress)
    run.checkpoints.release()  # a copy of the state as large as the model, which evaluation and export can do without
    outcome = recorded_outcome(run, best)
    to_export = trained_here(run) or broadcast_value(exported_step(run.config.run_dir)) != best
    if outcome is None or to_export:
        run.checkpoints.restore_weights(best)
    if outcome is None:
        outcome = evaluate_and_record(run, dataset, best)
    if to_export:
        export_bundle(run, dataset, outcome, best)
        if weights_bytes(run.model) < run.config.tracking.log_weights_below_mib << 20:
            run.tracker.log_file(Path(run.config.run_dir) / BUNDLE_FOLDER)
    run.tracker.end("FINISHED")
    dist.barrier()


def evaluate_and_record(run: Run, dataset: DatasetDirectory, best: int) -> dict[str, Any]:
    """Evaluates the test split, and writes outcome.json and report.html. Returns the outcome, on every worker."""
    test, outcome = evaluate(run, "test"), {}
    if run.world.rank == 0:
        # Not at the top: rank 0 alone draws.
        from recsys_ray.training.finishing.record import record_outcome

        outcome = record_outcome(run, dataset, test, best)
    return broadcast_value(outcome)


def recorded_outcome(run: Run, best: int) -> dict[str, Any] | None:
    """Returns outcome.json where an earlier call wrote it for this very end of the run; else None. The same on every worker."""
    try:
        found = None if trained_here(run) else read_outcome(run.config.run_dir)
    except (OSError, ValueError):
        found = None
    expected = {
        "steps": run.progress.step,
        "best_checkpoint": f"step_{best}",
        "tracking_run_id": run.progress.tracking_run_id,
    }
    return broadcast_value(found if found and found | expected == found else None)


def trained_here(run: Run) -> bool:
    """Returns whether this call of `train` has trained any step."""
    return run.progress.step != run.resumed_step
