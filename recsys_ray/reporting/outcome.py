"""outcome.json: what a finished run achieved, in one flat record for people and other programs."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from recsys_ray.files.json_text import finite_or_null, json_text

OUTCOME_FILE = "outcome.json"
BOTH_CLASSES = "the test rows have labels of one class alone: it wants positive and negative ones"
WHY_UNDEFINED = {
    "test_auc": BOTH_CLASSES,
    "test_ne": BOTH_CLASSES,
    "test_calibration": "no test row is positive: it is predicted over observed positives",
}
"""Key of the outcome -> why its value may be undefined."""


def with_undefined(outcome: dict[str, Any]) -> dict[str, Any]:
    """Returns the outcome with null for each number that is not finite, and under `undefined` why, where there is one."""
    names = [name for name, value in outcome.items() if isinstance(value, float) and not math.isfinite(value)]
    reasons = {name: WHY_UNDEFINED.get(name, "it was not a finite number") for name in names}
    return finite_or_null(outcome | ({"undefined": reasons} if reasons else {}))


def write_outcome(run_dir: Path, outcome: dict[str, Any]) -> None:
    """Writes outcome.json, whole or not at all."""
    partial = run_dir / f".{OUTCOME_FILE}"
    partial.write_text(json_text(outcome))
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
