"""A trained ranking model that scores rows of raw columns, or pairs of users and items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys_ray.bundle.manifest import Manifest
from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.models.rows import take_rows
from recsys_ray.models.task import Batch, SplitRanker, Task
from recsys_ray.schema import Dense, Schema
from recsys_ray.serving.encoder import Encoder, RawRows, as_table
from recsys_ray.serving.onnx_engine import DenseEngine

PREDICTED_AT_ONCE = 8192


@dataclass(frozen=True)
class Ranker:
    """A trained model of rows, on one CPU or GPU."""

    manifest: Manifest
    encoder: Encoder
    task: Task
    device: torch.device
    engine: DenseEngine | None = None
    """Runs the dense part of a model that can be split; None: PyTorch runs the whole."""

    @property
    def version(self) -> str:
        """Names the weights, and all that belongs to them."""
        return self.manifest.version

    @property
    def schema(self) -> Schema:
        """The columns that the model was trained on."""
        return self.encoder.schema

    def predict(self, rows: RawRows) -> np.ndarray:
        """Returns the score of every row, float32 [rows]: a DLRM's is the probability of a positive label.

        `rows` needs the schema's features, raw; a null stands for an unknown value. Raises ValueError naming what cannot be used.
        """
        table = as_table(rows)
        parts = [
            self.predict_encoded(self.encoder.encode(table.slice(start, PREDICTED_AT_ONCE), self.schema.features))
            for start in range(0, max(table.num_rows, 1), PREDICTED_AT_ONCE)
        ]
        return np.concatenate(parts)

    @torch.inference_mode()
    def predict_encoded(self, columns: Columns) -> np.ndarray:
        """Returns the score of every row of columns that are encoded as in a dataset directory, float32 [rows]."""
        if not row_count(columns, self.schema):
            return np.zeros(0, np.float32)
        batch = self._batch(columns)
        if self.engine is not None and self.task.split is not None:
            return self.engine(batch.dense, self.task.split.lookup(batch))
        return self.task.predict(self.task.module, batch).float().cpu().numpy()

    @torch.inference_mode()
    def predict_pairs(self, users: Columns, items: Columns, user: np.ndarray) -> np.ndarray:
        """Returns the score of each item for its user, float32 [items].

        Args:
            users: encoded user and context columns of U users, which are looked up once.
            items: encoded item columns.
            user: int64 [items], the row of `users` of each item.
        """
        if not len(user):
            return np.zeros(0, np.float32)
        if self.task.split is None:
            return self.predict_encoded({**take_rows(users, torch.from_numpy(user)), **items})
        ours, theirs = self._side(users, self.task.split), self._side(items, self.task.split)
        place = torch.from_numpy(user).to(self.device)
        # Either side has zeros in the place of the other's features.
        dense, pooled = theirs[0] + ours[0][place], theirs[1] + ours[1][place]
        if self.engine is not None:
            return self.engine(dense, pooled)
        return self.task.split.dense(dense, pooled).float().cpu().numpy()

    def _side(self, columns: Columns, split: SplitRanker) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns dense features and pooled embeddings of rows with some of the columns; those of the others are zero."""
        batch = self._batch(without_values(columns, self.schema))
        return batch.dense, split.lookup(batch)

    def _batch(self, columns: Columns) -> Batch:
        rows = row_count(columns, self.schema)
        label = {self.schema.label.name: torch.zeros(rows)} if self.schema.label else {}
        # Label and weight, which only training reads, do not change a score.
        return self.task.to_batch({**columns, **label, ROW_WEIGHT: torch.ones(rows)}).to(self.device)


def row_count(columns: Columns, schema: Schema) -> int:
    """Returns the number of rows of encoded feature columns."""
    name = next(column.name for column in schema.features if column.name in columns)
    return len(columns.get(name + LENGTHS, columns[name]))


def without_values(columns: Columns, schema: Schema) -> Columns:
    """Adds the feature columns that are missing: dense ones of zeros, categorical ones without any value."""
    rows, found = row_count(columns, schema), dict(columns)
    for column in schema.features:
        if column.name in columns:
            continue
        if isinstance(column, Dense):
            found[column.name] = torch.zeros(rows)
        else:
            found |= {column.name: torch.zeros(0, dtype=torch.int32), column.name + LENGTHS: torch.zeros(rows, dtype=torch.int32)}
    return found
