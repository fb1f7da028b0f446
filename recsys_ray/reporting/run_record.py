"""The record of a finished run that its report is written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that the report shows, as plain data, so that no model or process group is needed to write it."""

    outcome: dict[str, Any]
    """outcome.json."""
    loss_name: str
    """What the training loss is called, such as "log loss" or "softmax loss"."""
    objective: str
    """The validation metric by which one epoch is better than another."""
    lower_is_better: bool
    """Whether a lower objective is better."""
    training: list[dict[str, float]]
    """step, loss, rows_per_second, data_wait_share and learning_rate of each logged step."""
    validation: list[dict[str, float]]
    """step, epoch and the model's metrics of each validation."""
    calibration_curve: list[dict[str, float]]
    """predicted, observed and rows of each bin of test rows."""
    comparison: list[dict[str, Any]]
    """name and metrics of the model, its rivals, and groups of users."""
    plan: list[dict[str, Any]]
    """table, rows, dim, mib, sharding, kernel and rank of each shard; rows, dim and MiB are the shard's own."""
    seconds: dict[str, float]
    """Part of the run -> seconds spent in it."""
    config: dict[str, Any]
    dataset: dict[str, Any]
    """summary.json of the dataset directory: rows_in, rows by split, rejected, rejected_reasons, fingerprint."""
