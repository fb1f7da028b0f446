"""How far a run has come: what a checkpoint says beside its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Enough to go on, and to draw the whole run."""

    epoch: int = 0
    """Epochs that are trained and validated."""
    step: int = 0
    blocks_in_epoch: int = 0
    """Row blocks trained, by all workers, of the epoch under way: a place that no change of workers or batch moves."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """Step and objective of each validation, negative where higher is better."""
    validated_step: int = 0
    mlflow_run_id: str = ""
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, parts: dict[str, float]) -> None:
        for part, seconds in parts.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def best_steps(self) -> list[int]:
        """Best first, of equally good ones the earlier; where nothing was validated, the last step."""
        ranked = sorted(self.scores, key=lambda entry: math.inf if math.isnan(entry[1]) else entry[1])
        return [step for step, _ in ranked] or [self.step]

    @property
    def epochs_since_best(self) -> int:
        steps = [step for step, _ in self.scores]
        return len(steps) - 1 - steps.index(self.best_steps[0]) if steps else 0
