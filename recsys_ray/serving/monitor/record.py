"""The figures of a report in the experiment tracker: one run for all reports of a folder, a step for each."""

from __future__ import annotations

import re
from pathlib import Path

from recsys_ray.config import ModelConfig, TrackingConfig, TrainConfig
from recsys_ray.reporting.tracking.tracker import open_tracker, viewing_hint
from recsys_ray.serving.monitor.inspection import Inspection, WatchConfig

FORBIDDEN = re.compile(r"[^\w\-. /]")
"""Characters that MLflow allows in no metric's name."""


def inspection_metrics(found: Inspection) -> dict[str, float]:
    """Returns all figures by name, such as `psi/age` and `calibration`."""
    metrics = {"alarms": float(len(found.alarms)), "requests": float(found.traffic.requests)}
    metrics |= {"milliseconds/p50": found.traffic.median_milliseconds, "milliseconds/p99": found.traffic.p99_milliseconds}
    for drift in [*found.features, *found.scores]:
        name = FORBIDDEN.sub("_", drift.name.replace(": ", "/"))
        metrics[f"psi/{name}"] = drift.psi
        metrics |= {f"{rate.name}/{name}": rate.current for rate in drift.rates}
    if found.recommended:
        metrics["coverage"], metrics["effective_items"] = found.recommended.coverage, found.recommended.effective
        metrics["outside_catalogue"], metrics["empty_answers"] = found.recommended.outside, found.recommended.empty
    if found.quality:
        metrics["hit_rate"], metrics["recall"] = found.quality.hit_rate, found.quality.recall
    if found.quality and found.quality.calibration:
        whole = found.quality.calibration[0]
        metrics["predicted_rate"], metrics["observed_rate"] = whole.predicted, whole.observed
    return metrics


def record_inspection(found: Inspection, report: Path, watch: WatchConfig, tracking: TrackingConfig) -> str:
    """Records figures and report in the run of the report's folder, and returns a line that says where to look.

    The step is the second of the last request, so that reports of successive days draw a curve.
    """
    config = TrainConfig(run_dir=str(report.parent.absolute()), model=ModelConfig(), tracking=tracking)
    tracker = open_tracker(config, {"log": watch.log, "data": watch.data}, "", 0)
    tracker.log_metrics(int(found.traffic.last.timestamp()), inspection_metrics(found))
    tracker.set_tags({"alarms": "; ".join(map(str, found.alarms))[:500] or "none", "models": ", ".join(found.traffic.models)})
    tracker.log_file(report)
    tracker.end("FINISHED")
    return viewing_hint(config)
