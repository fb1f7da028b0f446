"""The contract between a model and the rest of the package: all that training, planning and serving may know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys_ray.columns import Columns
from recsys_ray.config import ModelConfig
from recsys_ray.schema import Schema

Outputs = dict[str, torch.Tensor]
"""What a model returns beside its loss: "loss" (detached, []) and by convention "logits" and "labels" [B]."""
SplitReader = Callable[[str], Iterable[Columns] | None]
"""Reads this worker's share of a split once, and returns None where the split has no rows. Every worker calls it."""


@dataclass
class Batch(Pipelineable):
    """B rows as a model takes them.

    `dense` float32 [B, D], `sparse` of F features, `labels` and `weights` float32 [B]. A model may add fields in a subclass; each
    field needs a tensor's `to`, `record_stream` and `pin_memory`.
    """

    dense: torch.Tensor
    sparse: KeyedJaggedTensor
    labels: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Returns the batch on `device`."""
        return type(self)(*(part.to(device, non_blocking=non_blocking) for part in self._parts()))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of every field until `stream` has used it."""
        for part in self._parts():
            part.record_stream(stream)

    def pin_memory(self) -> Self:
        """Returns the batch in page-locked host memory."""
        return type(self)(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> list[Any]:
        return [getattr(self, part.name) for part in dataclasses.fields(self)]


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a split: metrics, and what the report draws."""

    metrics: dict[str, float]
    calibration_curve: list[dict[str, float]] = field(default_factory=list)
    """predicted, observed and rows of each bin of a binary prediction."""
    comparison: list[dict[str, Any]] = field(default_factory=list)
    """name and metrics of the model, of baselines, and of the model by group of users."""


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step besides the embedding tables, for the planner. Counts are of float32 numbers."""

    dense_parameters: int
    """Parameters that every worker holds whole."""
    multiplications_per_row: int
    """Multiply-adds of a row's forward pass."""
    activations_per_row: int
    """Numbers of a row that the backward pass needs: inputs and outputs of every layer, embeddings and their gradients."""
    sampled_rows: int = 0
    """Rows that each worker looks up in addition to its share of the batch, such as sampled negatives."""
    scores_all_candidates: bool = False
    """Whether every row is scored against the candidates of all workers, as in an in-batch softmax."""


@dataclass(frozen=True)
class Towers:
    """The two halves of a retrieval model, whose score of a user and an item is the dot product of their vectors.

    Both functions take the module, encoded columns and a device, and return float32 [rows, dim].
    """

    embed_query: Callable[[Any, Columns, torch.device], torch.Tensor]
    """Embeds rows of user and context columns."""
    embed_candidate: Callable[[Any, Columns, torch.device], torch.Tensor]
    """Embeds rows of item columns."""
    dim: int


@dataclass(frozen=True)
class SplitRanker:
    """A ranking model in two parts: an inference engine can run the second, training can capture it, a user is looked up once.

    `Batch.dense` has the schema's dense columns in order, or one column of zeros where there are none.
    """

    lookup: Callable[[Batch], torch.Tensor]
    """Returns the pooled embeddings of a batch, [B, F, dim], in the order of `features`."""
    features: tuple[str, ...]
    """The names of the schema's categorical columns; those that share a table may follow each other."""
    dense: nn.Module
    """Maps `Batch.dense` and the embeddings to the scores [B] that `Task.predict` returns. It holds no embedding table."""
    dim: int
    """Numbers of an embedding."""
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Returns the loss of a training step, given `Batch.dense`, the embeddings, `Batch.labels` and `Batch.weights`. Its shapes
    depend on the number of rows alone, and no values of a batch are read on the host: it can be captured as a CUDA graph."""


@dataclass(frozen=True)
class Task:
    """A model that is ready for training, planning and prediction.

    `module.forward(batch)` returns (loss, Outputs). The tables are on `meta`; the dense part is on the device.
    """

    module: nn.Module
    to_batch: Callable[[Columns], Batch]
    """Makes a batch of the columns that a stream yields, on the device that they are on: in training on a GPU that is the GPU, in
    evaluation the host."""
    evaluate: Callable[[Any, str, SplitReader, torch.device], Evaluation | None]
    """Evaluates a split with the sharded model. Every worker calls it; rank 0 gets the result, or None without any rows."""
    predict: Callable[[Any, Batch], torch.Tensor]
    """Returns the scores [B] of the rows of a batch, given the module, sharded or not."""
    cost: StepCost
    objective: str
    """The validation metric by which one epoch is better than another."""
    lower_is_better: bool
    headline: tuple[str, ...]
    """The metrics to name first."""
    loss_name: str
    """What the training loss is called on a chart, such as "log loss"."""
    towers: Towers | None = None
    """The halves of a retrieval model; None for a ranking model."""
    split: SplitRanker | None = None
    """The parts of a ranking model that can be split; else None."""
    batches_on_host: bool = False
    """Whether `to_batch` must have the columns in host memory in training too, such as to draw negatives for their items."""


class DatasetFacts(Protocol):
    """The facts that a model may ask of the dataset that it trains on, beyond the schema."""

    def catalogue(self) -> tuple[Columns, torch.Tensor]:
        """Returns the encoded item columns of all N items that may be recommended, and how many positive training rows each has,
        float32 [N]. Raises FileNotFoundError where the dataset has no catalogue."""

    def value_names(self, column: str) -> tuple[str, ...]:
        """Returns what each table row of a user column stands for, as far as a vocabulary knows. Raises ValueError for no such
        column."""


@dataclass(frozen=True)
class BuildContext:
    """Everything that a model is built from besides its own configuration."""

    schema: Schema
    device: torch.device
    autocast: torch.dtype | None = None
    """The type of the dense part's arithmetic; None: float32."""
    seed: int = 0
    dataset: DatasetFacts | None = None
    """None where a schema is all there is. Such a Task can be planned and can predict; it may be unable to train."""


class RegisteredModel(NamedTuple):
    """The registry's entry of a model, which the model's module calls `MODEL`."""

    config: type[ModelConfig]
    build: Callable[[Any, BuildContext], Task]


def needs_dataset(*_: object) -> Any:
    """Stands for the parts of a Task that only a dataset can give. Raises ValueError."""
    raise ValueError("this model was built from a schema alone: it can be planned and can predict, but not train")
