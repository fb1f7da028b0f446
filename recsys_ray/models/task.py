"""The contract between models and training: all that training may know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

Columns = dict[str, torch.Tensor]


@dataclass
class Batch(Pipelineable):
    """B rows: `dense` float32 [B, D], `sparse` of F features, `labels` and `weights` float32 [B]."""

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    labels: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(
            self.dense.to(device, non_blocking=non_blocking),
            self.sparse.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for part in (self.dense, self.sparse, self.labels, self.weights):
            part.record_stream(stream)

    def pin_memory(self) -> Batch:
        return Batch(self.dense.pin_memory(), self.sparse.pin_memory(), self.labels.pin_memory(), self.weights.pin_memory())


@dataclass(frozen=True)
class Task:
    """A model made ready for training.

    `module.forward(batch)` returns (loss, (loss, logits, labels)), the convention of TorchRec's DLRMTrain. `to_batch` makes a
    Batch of the columns that the stream yields. `metrics` maps predicted probabilities, labels and weights [n] to numbers.
    """

    module: nn.Module
    to_batch: Callable[[Columns], Batch]
    metrics: Callable[..., dict[str, float]]
