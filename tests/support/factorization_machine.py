"""A factorization machine (Rendle 2010), as a third model that a test adds to a copy of the package: this file and one line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.fx
from torch import nn

from recsys_ray.config import ModelConfig
from recsys_ray.models.dlrm import WeightedBinaryLoss, labelled_batch, predicted_probability
from recsys_ray.models.embeddings import embedding_tables
from recsys_ray.models.evaluation.binary_metrics import evaluate_binary
from recsys_ray.models.interaction import SparseFeatures
from recsys_ray.models.step_cost import step_cost
from recsys_ray.models.task import BuildContext, RegisteredModel, Task


@dataclass(frozen=True)
class FactorizationMachineConfig(ModelConfig):
    """The settings of a factorization machine."""

    embedding_dim: int = 8
    """The first number of an embedding is its linear weight, the others are its factors."""


class FactorizationMachine(nn.Module):
    """Logistic regression on all columns, plus the dot products of all pairs of categorical columns."""

    def __init__(self, tables: nn.Module, dense: int, device: torch.device) -> None:
        super().__init__()
        self.sparse_arch = SparseFeatures(tables)
        self.linear = nn.Linear(max(dense, 1), 1, device=device)

    def forward(self, dense: torch.Tensor, sparse: object) -> torch.Tensor:
        """Returns the logits [B, 1]."""
        embeddings = self.sparse_arch(sparse)
        weights, factors = embeddings[:, :, :1], embeddings[:, :, 1:]
        pairs = factors.sum(dim=1).pow(2) - factors.pow(2).sum(dim=1)
        return self.linear(dense) + weights.sum(dim=1) + pairs.sum(dim=1, keepdim=True) / 2


def build(config: FactorizationMachineConfig, context: BuildContext) -> Task:
    """Builds a factorization machine for the label of the schema."""
    schema = context.schema
    tables = embedding_tables(schema, config.embedding_dim, "mean")
    model = FactorizationMachine(tables, len(schema.dense), context.device)
    module, to_batch = WeightedBinaryLoss(model, context.device, context.autocast), partial(labelled_batch, schema)
    return Task(
        module=module,
        to_batch=to_batch,
        evaluate=partial(evaluate_binary, to_batch=to_batch, predict=predicted_probability),
        predict=predicted_probability,
        cost=step_cost(module, config.embedding_dim, vectors=len(schema.categorical)),
        objective="ne",
        lower_is_better=True,
        headline=("auc", "ne"),
        loss_name="log loss",
    )


MODEL = RegisteredModel(FactorizationMachineConfig, build)
