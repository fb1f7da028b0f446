"""The contract between models and training: all that training may know of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys_ray.columns import Columns

Read = Callable[[str], Iterable[Columns] | None]
"""This worker's share of a split, once; None where the split has no rows. Every worker calls it."""


@dataclass
class Batch(Pipelineable):
    """B rows: `dense` float32 [B, D], `sparse` of F features, `labels` and `weights` float32 [B]. Every field has a tensor's
    `to`, `record_stream` and `pin_memory`."""

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    labels: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return type(self)(*(part.to(device, non_blocking=non_blocking) for part in self._parts()))

    def record_stream(self, stream: torch.Stream) -> None:
        for part in self._parts():
            part.record_stream(stream)

    def pin_memory(self) -> Self:
        return type(self)(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> list[Any]:
        return [getattr(self, part.name) for part in dataclasses.fields(self)]


@dataclass(frozen=True)
class Evaluation:
    """What a split came to: numbers, and what the report draws of them."""

    metrics: dict[str, float]
    calibration_curve: list[dict[str, float]] = field(default_factory=list)
    """predicted, observed, rows: of a binary prediction."""
    comparison: list[dict[str, Any]] = field(default_factory=list)
    """name and metrics: the model beside baselines, and by group of users."""


@dataclass(frozen=True)
class Task:
    """A model made ready for training.

    `module.forward(batch)` returns (loss, (loss, logits, labels)), the convention of TorchRec's DLRMTrain. `to_batch` makes a
    training batch of the columns that the stream yields. `evaluate(model, split, read, device)` measures a split with the sharded
    model: every worker calls it, rank 0 gets the result. `objective` names the metric by which an epoch is better than another.
    """

    module: nn.Module
    to_batch: Callable[[Columns], Batch]
    evaluate: Callable[[Any, str, Read, torch.device], Evaluation | None]
    objective: str
    lower_is_better: bool
    headline: tuple[str, ...]
    """The metrics to name first."""
