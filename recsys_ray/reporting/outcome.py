"""outcome.json: what a finished run achieved, in one flat record for people and other programs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

OUTCOME_FILE = "outcome.json"


def write_outcome(run_dir: Path, outcome: dict[str, Any]) -> None:
    """Writes outcome.json, whole or not at all."""
    partial = run_dir / f".{OUTCOME_FILE}"
    partial.write_text(json.dumps(outcome, indent=2) + "\n")
    partial.replace(run_dir / OUTCOME_FILE)


def read_outcome(run_dir: str | Path) -> dict[str, Any]:
    """Returns the outcome of a finished run. Raises FileNotFoundError where the run has not finished."""
    return json.loads(Path(run_dir, OUTCOME_FILE).read_text())


def mean_rows_per_second(training: list[dict[str, float]]) -> float:
    """Returns rows over the time they took, given the logged points of training, each weighted by its steps."""
    ends = [0.0, *(point["step"] for point in training)]
    steps = [after - before for before, after in pairwise(ends)]
    seconds = sum(count / point["rows_per_second"] for count, point in zip(steps, training, strict=True))
    return sum(steps) / seconds if seconds else 0.0
