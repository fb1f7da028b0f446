"""The work to plan for: a model on `meta`, where tables take no memory however large, and the size of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torchrec.distributed.planner.types import ParameterConstraints

from recsys_ray.config import TrainConfig
from recsys_ray.models.embeddings import module_name
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext, Task
from recsys_ray.schema import Categorical, Schema
from recsys_ray.sharding.number_types import set_table_type
from recsys_ray.sharding.planner import fuse_sparse_optimizer

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """A training configuration with the model and the data's shape, from which the costs of a step follow."""

    config: TrainConfig
    schema: Schema
    task: Task
    list_values: float
    """How many values a row of a multi-valued column has on average."""

    def rows(self, workers: int) -> int:
        """Returns the rows that one worker looks up in a step: its share of the global batch, and the rows that it samples."""
        return self._share(workers) + self.task.cost.sampled_rows

    def _share(self, workers: int) -> int:
        return -(-self.config.train.global_batch // workers)

    @property
    def constraints(self) -> dict[str, ParameterConstraints]:
        """Table name -> the pooling factor (values of a row) of each of its columns."""
        return {
            module_name(name): ParameterConstraints(pooling_factors=[self._values(column) for column in columns])
            for name, columns in self.schema.tables.items()
        }

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables with their optimizer state, each table whole."""
        dim, kind = self.config.model.embedding_dim, self.config.optimizer.sparse
        rows = [columns[0].num_embeddings for columns in self.schema.tables.values()]
        return sum(self.number_bytes * count * dim + FLOAT_BYTES * optimizer_state_size(kind, count, dim) for count in rows)

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in an embedding table."""
        return FLOAT_BYTES if self.config.sharding.table_type == "fp32" else FLOAT_BYTES // 2

    @property
    def batch_bytes(self) -> float:
        """Bytes of a row of a batch: values and lengths of every column, label and weight."""
        ids = sum(FLOAT_BYTES * (self._values(column) + 1) for column in self.schema.categorical)
        return ids + FLOAT_BYTES * (len(self.schema.dense) + 2)

    @property
    def gathered_candidates(self) -> int:
        """Candidates that a step gathers from all workers, without sampled ones."""
        return self.config.train.global_batch if self.task.cost.scores_all_candidates else 0

    def scores(self, workers: int) -> int:
        """Returns how many scores one worker computes in a step: its rows times the candidates of all workers."""
        sampled = workers * self.task.cost.sampled_rows
        return self._share(workers) * (self.gathered_candidates + sampled) if self.gathered_candidates else 0

    def flops(self, workers: int) -> float:
        """Returns the FLOPs of one worker's step: 2 for each multiply-add of the forward pass, and twice that backward."""
        rows = self.task.cost.multiplications_per_row * self.rows(workers)
        return 6.0 * (rows + self.scores(workers) * self.config.model.embedding_dim)

    def _values(self, column: Categorical) -> float:
        return self.list_values if column.multi else 1.0


def optimizer_state_size(kind: str, rows: int, dim: int) -> int:
    """Returns how many numbers the sparse optimizer keeps for a shard of `rows` x `dim`."""
    return {"rowwise_adagrad": rows, "adagrad": rows * dim, "sgd": 0}[kind]


def make_workload(config: TrainConfig, schema: Schema, list_values: float) -> Workload:
    """Builds the model on `meta`. Raises ValueError for tables without a size, or a schema that the model cannot train on."""
    if list_values <= 0:
        raise ValueError(f"--list-values is {list_values:g}: it must be greater than 0")
    for column in schema.categorical:
        if not column.num_embeddings:
            raise ValueError(
                f"column {column.name!r}: num_embeddings is 0, which preparation fills in with the size of the vocabulary: plan "
                "with --data.path, or write the size that you expect into the schema"
            )
    task = build_task(config.model, BuildContext(schema, torch.device("meta")))
    sharding = set_table_type(task.module, config.sharding, torch.device("cuda"))
    fuse_sparse_optimizer(task.module, config.optimizer)
    return Workload(replace(config, sharding=sharding), schema, task, list_values)
