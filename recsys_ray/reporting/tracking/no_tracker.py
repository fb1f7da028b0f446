"""No tracker: nothing is recorded outside the run directory. Ranks other than 0 have this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_ray.config import TrainConfig


class NoTracker:
    """A Tracker whose methods do nothing."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def set_tags(self, values: dict[str, str]) -> None:
        """Does nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Does nothing."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Does nothing."""

    def end(self, status: str) -> None:
        """Does nothing."""


def open_run(config: TrainConfig, settings: dict[str, Any], run_id: str) -> NoTracker:
    """Returns a tracker that keeps the id, so that a later run with a tracker can continue the record."""
    return NoTracker(run_id)


def check_tracking(config: TrainConfig) -> None:
    """Does nothing: there is nothing that could fail."""


def viewing_hint(config: TrainConfig) -> str:
    """Returns an empty text: there is nothing to look at."""
    return ""
