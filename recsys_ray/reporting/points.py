"""Numbers from the points that a run has logged, ready to be drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Points: TypeAlias = Sequence[dict[str, Any]]
"""A dict of numbers and names for each point, such as a logged step, an epoch or a shard."""


def values_of(points: Points, key: str) -> np.ndarray:
    """Returns the values of `key`, float64 [points], NaN where a point has none."""
    return np.array([math.nan if point.get(key) is None else float(point[key]) for point in points], dtype=np.float64)


def any_finite(points: Points, key: str) -> bool:
    """Returns whether any point has a finite value of `key`."""
    return bool(np.isfinite(values_of(points, key)).any())


def best_point(points: Points, key: str, lower_is_better: bool) -> int | None:
    """Returns the index of the point with the best finite value of `key`, the first of equals; None where there is none."""
    values = values_of(points, key) * (-1 if lower_is_better else 1)
    ranked = np.where(np.isfinite(values), values, -np.inf)
    return int(ranked.argmax()) if np.isfinite(ranked).any() else None


def mib_by_table(plan: Points, ranks: int, named: int) -> dict[str, np.ndarray]:
    """Returns table -> MiB on every rank [ranks], largest first: the `named` largest tables, then the others added up."""
    tables: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(ranks))
    for row in plan:
        tables[str(row["table"])][int(row["rank"])] += np.nan_to_num(float(row["mib"]))
    by_size = sorted(tables.items(), key=lambda item: -item[1].sum())
    rest = by_size[named:]
    others = {f"other ({len(rest)} tables)": sum((mib for _, mib in rest), np.zeros(ranks))} if rest else {}
    return dict(by_size[:named]) | others


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of the finite values in a centred window; NaN where there is none."""
    window = np.ones(2 * (width // 2) + 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(counts > 0.5, sums / np.maximum(counts, 1), np.nan)


def highest(points: Points, key: str, least: float) -> float:
    """Returns the largest finite value, or `least` where that is more."""
    values = values_of(points, key)
    return float(np.max(values, initial=least, where=np.isfinite(values)))
