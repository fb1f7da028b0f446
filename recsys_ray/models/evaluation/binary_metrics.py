"""Metrics of a binary prediction, exact over all rows given: AUC, log loss, NE, calibration."""

from __future__ import annotations

import numpy as np


def binary_metrics(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """`predictions` are probabilities [n]; rows of weight 0 count for nothing.

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
    """Mean prediction against the rate observed, in bins of equally many rows, by rising prediction."""
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
