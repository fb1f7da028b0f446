"""The record of a run in an experiment tracker, and the table of trackers. An adapter is imported only when it is asked for.

A new tracker is one new file with `open_run`, `check_tracking` and `viewing_hint` (as in mlflow_tracker.py); its name goes into
TRACKERS and TrackingConfig.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from recsys_ray.config import TrainConfig

TRACKERS = {
    "mlflow": "recsys_ray.reporting.tracking.mlflow_tracker",
    "none": "recsys_ray.reporting.tracking.no_tracker",
}


class Tracker(Protocol):
    """A run in an experiment tracker. Rank 0 records; on every other rank all methods do nothing."""

    run_id: str
    """The tracker's own id of the run, by which a resumed run continues in it; empty where it has none."""

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        """Records metrics of a step; NaN is left out."""

    def set_tags(self, values: dict[str, str]) -> None:
        """Sets tags of the run."""

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact called `name`."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Stores a file as an artifact, in `folder` of the run's artifacts."""

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Marks how the run ended."""


def check_tracking(config: TrainConfig) -> None:
    """Raises ValueError, before any work is done, where the run could not be recorded, or for an unknown tracker."""
    _adapter(config.tracking.backend).check_tracking(config)


def open_tracker(config: TrainConfig, settings: dict[str, Any], run_id: str, rank: int) -> Tracker:
    """Opens the run with this id, or a new run where the id is empty or unknown. Raises ValueError for an unknown tracker.

    `settings` are the configuration as flat names and values, recorded with a new run.
    """
    name = config.tracking.backend if rank == 0 else "none"
    return _adapter(name).open_run(config, settings, run_id)


def viewing_hint(config: TrainConfig) -> str:
    """Returns a line that says how to look at the record; empty where there is none."""
    return _adapter(config.tracking.backend).viewing_hint(config)


def _adapter(name: str) -> Any:
    if name not in TRACKERS:
        raise ValueError(f"--tracking.backend {name} is not one of {', '.join(TRACKERS)}")
    return import_module(TRACKERS[name])
