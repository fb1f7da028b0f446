"""What a cluster is planned for: a model on `meta`, where tables take no memory however large, and the size of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys_ray.config import DLRMConfig, TrainConfig, TwoTowerConfig
from recsys_ray.models.dlrm import build_dlrm
from recsys_ray.models.embeddings import module_name
from recsys_ray.models.two_tower import TwoTower, TwoTowerLoss, check_loss, check_retrieval_schema
from recsys_ray.schema import Categorical, Schema
from recsys_ray.sharding.planner import fuse_sparse_optimizer

FLOAT = 4


@dataclass(frozen=True)
class Workload:
    """`list_values`: how many values a multi-valued column has on average."""

    config: TrainConfig
    schema: Schema
    module: nn.Module
    list_values: float

    def rows(self, workers: int) -> int:
        """Of a step, that one worker looks up: its share of the global batch, and a Two Tower's uniform negatives."""
        return -(-self.config.train.global_batch // workers) + self._uniform_negatives

    @property
    def _uniform_negatives(self) -> int:
        return self.config.model.uniform_negatives if isinstance(self.config.model, TwoTowerConfig) else 0

    @property
    def constraints(self) -> dict[str, ParameterConstraints]:
        """By table: how many rows of it a row of the batch looks up, for each column."""
        return {
            module_name(name): ParameterConstraints(pooling_factors=[self._values(column) for column in columns])
            for name, columns in self.schema.tables.items()
        }

    @property
    def table_bytes(self) -> int:
        """Of all tables with their optimizer state, each whole."""
        dim, kind = self.config.model.embedding_dim, self.config.optimizer.sparse
        rows = [columns[0].num_embeddings for columns in self.schema.tables.values()]
        return sum(FLOAT * (count * dim + state_numbers(kind, count, dim)) for count in rows)

    @property
    def dense(self) -> list[nn.Parameter]:
        """The parameters that every worker has."""
        collections = [part for part in self.module.modules() if isinstance(part, EmbeddingBagCollection | EmbeddingCollection)]
        tables = {id(parameter) for part in collections for parameter in part.parameters()}
        return [parameter for parameter in self.module.parameters() if id(parameter) not in tables]

    @property
    def batch_bytes(self) -> float:
        """Of a row: values and lengths of every column, label and weight."""
        ids = sum(FLOAT * (self._values(column) + 1) for column in self.schema.categorical)
        return ids + FLOAT * (len(self.schema.dense) + 2)

    @property
    def dense_numbers(self) -> int:
        """Of a row, that the backward pass needs: what every layer reads and writes, the embeddings and their gradient."""
        layers = sum(sum(parameter.shape) for parameter in self.dense if parameter.dim() == 2)
        model = self.config.model
        padded = model.pooled_values if isinstance(model, TwoTowerConfig) and model.pooling == "attention" else 1
        vectors = sum(padded if column.multi else 1 for column in self.schema.categorical)
        return layers + 2 * vectors * model.embedding_dim

    @property
    def candidates(self) -> int:
        """Of a step, over all workers, that a row's query is compared with: of a softmax, without uniform negatives."""
        softmax = isinstance(self.config.model, TwoTowerConfig) and self.config.model.loss == "softmax"
        return self.config.train.global_batch if softmax else 0

    def scores(self, workers: int) -> int:
        """Of one worker's step: its rows of the global batch by all workers' candidates."""
        share = -(-self.config.train.global_batch // workers)
        return share * (self.candidates + workers * self._uniform_negatives) if self.candidates else 0

    def flops(self, workers: int) -> float:
        """Of one worker's step: 2 for a number of a weight matrix and a row, and twice that in the backward pass."""
        model = self.config.model
        per_row = sum(parameter.numel() for parameter in self.dense)
        if isinstance(model, DLRMConfig) and model.interaction == "dot":
            per_row += (len(self.schema.categorical) + 1) ** 2 * model.embedding_dim
        return 6.0 * (per_row * self.rows(workers) + self.scores(workers) * model.embedding_dim)

    def _values(self, column: Categorical) -> float:
        return self.list_values if column.multi else 1.0


def state_numbers(kind: str, rows: int, dim: int) -> int:
    """How many numbers the sparse optimizer keeps for a shard of `rows` x `dim`."""
    return {"rowwise_adagrad": rows, "adagrad": rows * dim, "sgd": 0}[kind]


def workload(config: TrainConfig, schema: Schema, list_values: float) -> Workload:
    """Raises ValueError for a schema whose tables have no size yet, or that the model cannot train on."""
    if list_values <= 0:
        raise ValueError(f"--list-values is {list_values:g}: it must be greater than 0")
    for column in schema.categorical:
        if not column.num_embeddings:
            raise ValueError(
                f"column {column.name!r}: num_embeddings is 0, which preparation fills in with the size of the vocabulary: plan "
                "with --data.path, or write the size that you expect into the schema"
            )
    module = _module(config, schema)
    fuse_sparse_optimizer(module, config.optimizer)
    return Workload(config, schema, module, list_values)


def _module(config: TrainConfig, schema: Schema) -> nn.Module:
    meta = torch.device("meta")
    if isinstance(config.model, DLRMConfig):
        return build_dlrm(config.model, schema, "weight", meta, None).module
    check_retrieval_schema(schema)
    check_loss(config.model, schema)
    return TwoTowerLoss(TwoTower(config.model, schema, meta), config.model, meta, None)
