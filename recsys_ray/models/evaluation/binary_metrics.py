"""Evaluation of a binary prediction, exact over a whole split: AUC, log loss, NE and calibration, every row counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from recsys_ray.columns import Columns
from recsys_ray.distributed import all_gather_rows, get_rank
from recsys_ray.models.task import Batch, Evaluation, SplitReader


class BinaryPredictions(NamedTuple):
    """Probabilities, labels and weights of all rows of a split, float32 [rows]."""

    probabilities: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def evaluate_binary(
    model: Any,
    split: str,
    read: SplitReader,
    device: torch.device,
    *,
    to_batch: Callable[[Columns], Batch],
    predict: Callable[[Any, Batch], torch.Tensor],
) -> Evaluation | None:
    """Evaluates a split with metrics of a binary label. Returns None where there are no rows, and on every worker but rank 0."""
    columns = read(split)
    if columns is None:
        return None
    found = predict_split(model, predict, map(to_batch, columns), device)
    return None if found is None else Evaluation(binary_metrics(*found), calibration_curve(*found))


@torch.no_grad()
def predict_split(
    model: Any, predict: Callable[[Any, Batch], torch.Tensor], batches: Iterable[Batch], device: torch.device
) -> BinaryPredictions | None:
    """Predicts this worker's batches and gathers all rows (12 bytes each). Returns None on every worker but rank 0."""
    model.eval()
    parts = []
    for batch in batches:
        on_device = batch.to(device)
        probabilities = predict(model, on_device)
        counted = on_device.weights > 0
        columns = [probabilities[counted], on_device.labels[counted], on_device.weights[counted]]
        parts.append(torch.stack(columns, dim=1).cpu())
    model.train()
    gathered = all_gather_rows(torch.cat(parts), device).numpy().T
    return BinaryPredictions(*gathered) if get_rank() == 0 else None


def binary_metrics(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Returns the metrics of n predicted probabilities. Rows of weight 0 do not count.

    auc: chance that a positive is ranked above a negative, ties half. logloss: mean cross-entropy in nats. ne: log loss over
    the entropy of the base rate, below 1 where the model knows more than the base rate (He et al. 2014, "Practical Lessons
    from Predicting Clicks on Ads at Facebook"). calibration: predicted positives over observed ones. NaN where undefined.
    """
    # Not at the top: a second that every process would pay, and rank 0 alone needs.
    from sklearn.metrics import log_loss, roc_auc_score

    base_rate = float(np.average(labels, weights=weights))
    loss = float(log_loss(labels, predictions.astype(np.float64), sample_weight=weights, labels=[0, 1]))
    two_classes = 0 < base_rate < 1
    return {
        "auc": float(roc_auc_score(labels, predictions, sample_weight=weights)) if two_classes else float("nan"),
        "logloss": loss,
        "ne": loss / _entropy(base_rate) if two_classes else float("nan"),
        "calibration": float(np.average(predictions, weights=weights)) / base_rate if base_rate else float("nan"),
    }


def _entropy(rate: float) -> float:
    return -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)


def calibration_curve(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 20) -> list[dict[str, float]]:
    """Returns mean prediction and observed rate in bins of equally many rows, by rising prediction."""
    order = np.argsort(predictions, kind="stable")
    return [
        {
            "predicted": float(np.average(predictions[rows], weights=weights[rows])),
            "observed": float(np.average(labels[rows], weights=weights[rows])),
            "rows": float(len(rows)),
        }
        for rows in np.array_split(order, bins)
        if len(rows) and weights[rows].sum() > 0
    ]
