"""Evaluation of a binary prediction over a whole split, exact: every row once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from recsys_ray.columns import Columns
from recsys_ray.models.collectives import gather_rows, my_rank
from recsys_ray.models.evaluation.binary_metrics import binary_metrics, calibration_curve
from recsys_ray.models.task import Batch, Evaluation, Read

Predictions = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Probabilities, labels and weights, float32 [rows of the split]."""


def evaluate_binary(
    to_batch: Callable[[Columns], Batch], model: Any, split: str, read: Read, device: torch.device
) -> Evaluation | None:
    """None where the split has no rows, and on every worker but rank 0."""
    columns = read(split)
    found = None if columns is None else predict_split(model, map(to_batch, columns), device)
    return None if found is None else Evaluation(binary_metrics(*found), calibration_curve(*found))


@torch.no_grad()
def predict_split(model: Any, batches: Iterable[Batch], device: torch.device) -> Predictions | None:
    """Runs the model over this worker's batches and gathers all rows (12 bytes each); None on every worker but rank 0."""
    model.eval()
    parts = []
    for batch in batches:
        on_device = batch.to(device)
        _, (_, logits, labels) = model(on_device)
        counted = on_device.weights > 0
        parts.append(torch.stack([logits.sigmoid()[counted], labels[counted], on_device.weights[counted]], dim=1).cpu())
    model.train()
    probabilities, labels, weights = gather_rows(torch.cat(parts), device).numpy().T
    return (probabilities, labels, weights) if my_rank() == 0 else None
