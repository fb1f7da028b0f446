"""The progress of a run, which a checkpoint holds besides its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The place of a run, enough to resume it, and the points measured so far, enough to report the whole run."""

    epoch: int = 0
    """Epochs that are trained and validated."""
    step: int = 0
    blocks_in_epoch: int = 0
    """Row blocks of the current epoch trained by all workers together. Unlike steps, they do not depend on workers or batch."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """Step and objective of each validation; the objective is negated where higher is better."""
    validated_step: int = 0
    tracking_run_id: str = ""
    """The tracker's own id of the run; empty without a tracker."""
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def from_note(note: dict[str, Any]) -> Progress:
        """Returns the progress stored in a checkpoint, also in one of version 0.1, which named the id after MLflow."""
        renamed = {"mlflow_run_id": "tracking_run_id"}
        progress = Progress(**{renamed.get(name, name): value for name, value in note.items()})
        progress.scores = [(step, math.nan if score is None else score) for step, score in progress.scores]
        return progress

    def add_seconds(self, parts: dict[str, float]) -> None:
        """Adds seconds to parts of the run."""
        for part, seconds in parts.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def best_steps(self) -> list[int]:
        """Validated steps, best first and the earlier of equally good ones first; the last step where nothing was validated."""
        ranked = sorted(self.scores, key=lambda entry: math.inf if math.isnan(entry[1]) else entry[1])
        return [step for step, _ in ranked] or [self.step]

    @property
    def epochs_since_best(self) -> int:
        """Validations that have followed the best one."""
        steps = [step for step, _ in self.scores]
        return len(steps) - 1 - steps.index(self.best_steps[0]) if steps else 0
