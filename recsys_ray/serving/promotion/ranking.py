"""The measurement of a ranking model on the test split: AUC, normalised entropy and log loss of every row, resampled by user."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recsys_ray.columns import Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.serving.promotion.measurement import Measurement, Metrics
from recsys_ray.serving.promotion.row_mapping import RowMapping
from recsys_ray.serving.ranker import Ranker

SMALLEST_PROBABILITY = 1e-15


class LabelledRows(NamedTuple):
    """Rows of a split: label and weight float64, and the unit that each belongs to, int64 from 0."""

    labels: np.ndarray
    weights: np.ndarray
    unit_of_row: np.ndarray
    unit: str

    @property
    def base_rate(self) -> float:
        """The weighted share of positive rows."""
        return float(np.average(self.labels, weights=self.weights))


class ScoredRows(NamedTuple):
    """The test rows and a model's score of each, float32."""

    rows: LabelledRows
    scores: np.ndarray

    def measurement(self) -> Measurement:
        """Returns the metrics of these scores as a function of how often each unit counts."""
        return measure_scores(self.rows, self.scores)

    def constant(self) -> Measurement:
        """Returns the measurement of the trivial model, which gives every row the base rate."""
        return measure_scores(self.rows, np.full(len(self.scores), self.rows.base_rate, np.float32))


def score_rows(ranker: Ranker, dataset: DatasetDirectory) -> ScoredRows:
    """Scores every row of the test split. Raises ValueError where there is none, or the schema has no label."""
    schema = dataset.schema
    if schema.label is None:
        raise ValueError(f"{dataset.root} has no label column, which a ranking model is measured by")
    mapping = RowMapping.of(dataset, ranker.encoder, ranker.schema.features)
    parts: list[list[np.ndarray]] = []
    for columns in read_split(dataset, "test"):
        labels = columns[schema.label.name].numpy().astype(np.float64)
        weights = columns[schema.weight.name].numpy().astype(np.float64) if schema.weight else np.ones(len(labels))
        parts.append([labels, weights, _users(dataset, columns, len(labels)), ranker.predict_encoded(mapping(columns))])
    if not parts:
        raise ValueError(f"{dataset.root} has no test split to compare models on")
    labels, weights, users, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    unit = "users" if schema.key("user") else "rows"
    return ScoredRows(LabelledRows(labels, weights, _unit_of_row(users), unit), scores)


def _users(dataset: DatasetDirectory, columns: Columns, rows: int) -> np.ndarray:
    """Returns the table row of each row's user; 0 for an unknown user, and where the schema tells no users apart."""
    key = dataset.schema.key("user")
    return columns[key.name].numpy().astype(np.int64) if key else np.zeros(rows, np.int64)


def _unit_of_row(users: np.ndarray) -> np.ndarray:
    """Returns the number of each row's unit: its user, or the row itself where the user is unknown."""
    own = np.where(users > 0, users, -1 - np.arange(len(users)))
    return np.unique(own, return_inverse=True)[1]


def measure_scores(rows: LabelledRows, scores: np.ndarray) -> Measurement:
    """Returns the metrics of probabilities of a binary label; in a sample each row weighs its weight times its unit's count."""
    auc = WeightedAuc(scores, rows.labels)
    probabilities = np.clip(scores.astype(np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    losses = -np.where(rows.labels > 0, np.log(probabilities), np.log1p(-probabilities))

    def of_counts(counts: np.ndarray) -> Metrics:
        weights = rows.weights * counts[rows.unit_of_row]
        rate = float(np.average(rows.labels, weights=weights))
        loss = float(np.average(losses, weights=weights))
        entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate) if 0 < rate < 1 else np.nan
        return {"auc": auc(weights), "ne": loss / entropy, "logloss": loss}

    return Measurement(of_counts, int(rows.unit_of_row.max()) + 1, rows.unit, len(scores))


class WeightedAuc:
    """The AUC of fixed scores for any weights: it sorts once, so that another sample of the rows takes a few passes over them."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self._positive = labels[self._order] > 0

    def __call__(self, weights: np.ndarray) -> float:
        """Returns the chance that a positive is above a negative, ties half; NaN where either is missing."""
        ordered = weights[self._order]
        positive = np.add.reduceat(np.where(self._positive, ordered, 0), self._starts)
        negative = np.add.reduceat(np.where(self._positive, 0, ordered), self._starts)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative
        return float(positive @ (below + negative / 2) / pairs) if pairs else float("nan")
