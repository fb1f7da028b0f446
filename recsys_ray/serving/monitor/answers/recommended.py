"""The items that are recommended: how much of the catalogue, how popular, and whether the catalogue knows them at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.transform import canonical_ids
from recsys_ray.schema import Categorical
from recsys_ray.serving.monitor.alarms import Alarm, Thresholds
from recsys_ray.serving.monitor.answers.answers import Answers
from recsys_ray.serving.monitor.stability import independent_rows, wilson_interval

GROUPS = {"top 1 %": 0.01, "1 to 10 %": 0.1, "10 to 50 %": 0.5, "the rest": 1.0}
"""Groups of items by popularity, and which share of the catalogue lies before the end of each."""


@dataclass(frozen=True)
class RecommendedItems:
    """The items of the answers to recommend requests, compared with a catalogue."""

    requests: int
    items: int
    """Items in the catalogue."""
    distinct: int
    """Items of the catalogue that were recommended to anyone."""
    effective: float
    """The number of items that would be as diverse if each were recommended equally often: exp(entropy)."""
    outside: float
    """The share of recommendations of items that are not in the catalogue."""
    outside_surely: float
    """The least such share that chance leaves plausible."""
    empty: float
    """The share of requests that got no item."""
    recommended_share: dict[str, float]
    """Group of GROUPS -> its share of the recommendations."""
    chosen_share: dict[str, float]
    """Group of GROUPS -> its share of the choices in training rows."""

    @property
    def coverage(self) -> float:
        """The share of the catalogue that was recommended to anyone."""
        return self.distinct / self.items


def describe_recommended(answers: Answers, catalogue: pa.Table, key: Categorical, chance: float) -> RecommendedItems | None:
    """Counts the recommended items; None where the log has no recommend request."""
    asked = pc.equal(answers.requests["kind"], "recommend").to_numpy()
    if not asked.any():
        return None
    shown = answers.shown.filter(pa.array(asked[answers.shown["request"].to_numpy()]))
    place = _places(shown["key"], catalogue[key.name], key)
    frequency = catalogue[FREQUENCY].to_numpy().astype(np.float64)
    times = np.bincount(place[place >= 0], minlength=len(frequency)).astype(np.float64)
    outside = float(np.mean(place < 0)) if len(place) else 0.0
    independent = independent_rows(answers.requests["cluster"].to_numpy()[asked])
    shares = times[times > 0] / max(times.sum(), 1)
    return RecommendedItems(
        requests=int(asked.sum()),
        items=len(frequency),
        distinct=int((times > 0).sum()),
        effective=float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0,
        outside=outside,
        outside_surely=wilson_interval(outside, independent, 2 * chance).low,
        empty=1 - len(pc.unique(shown["request"])) / int(asked.sum()),
        recommended_share=_by_popularity(times, frequency),
        chosen_share=_by_popularity(frequency, frequency),
    )


def _places(keys: pa.ChunkedArray, catalogue: pa.ChunkedArray, key: Categorical) -> np.ndarray:
    """Returns the position of each key in the catalogue, int64; -1 where it is not there."""
    wanted, known = (canonical_ids(key, values.combine_chunks()) for values in (keys, catalogue))
    return pc.fill_null(pc.index_in(wanted, value_set=known, skip_nulls=True), -1).to_numpy().astype(np.int64)


def _by_popularity(counts: np.ndarray, frequency: np.ndarray) -> dict[str, float]:
    """Returns the share of `counts` in each group of items, from most to least frequent in training rows."""
    ordered = counts[np.argsort(-frequency, kind="stable")]
    ends = [max(1, round(share * len(ordered))) for share in GROUPS.values()]
    sums = np.diff([0.0, *(ordered[:end].sum() for end in ends)]) / max(counts.sum(), 1)
    return {name: float(share) for name, share in zip(GROUPS, sums, strict=True)}


def recommended_alarms(found: RecommendedItems, thresholds: Thresholds) -> Iterator[Alarm]:
    """Yields an alarm where items are recommended that the catalogue does not have."""
    if found.outside_surely > thresholds.outside_catalogue:
        share = f"{found.outside:.1%} are not in the catalogue (threshold {thresholds.outside_catalogue:.1%})"
        yield Alarm("recommended items", f"{share}: was the index built from another dataset?")
