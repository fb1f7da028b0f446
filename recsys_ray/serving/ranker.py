"""A trained ranking model that scores rows of raw columns, or pairs of users and items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch

from recsys_ray.bundle.manifest import Manifest
from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.models.rows import take_rows
from recsys_ray.models.task import Batch, Task
from recsys_ray.schema import Dense, Schema, Side
from recsys_ray.serving.encoder import Encoder, RawRows, as_table
from recsys_ray.serving.onnx_engine import PairEngine
from recsys_ray.serving.pair_scores import PairScores, SideFeatures

PREDICTED_AT_ONCE = 8192
PairSide: TypeAlias = "SideFeatures | Columns"
"""Users or items for `Ranker.score_pairs`: looked up where the model can be split, else encoded columns."""


@dataclass(frozen=True)
class Ranker:
    """A trained model of rows, on one CPU or GPU."""

    manifest: Manifest
    encoder: Encoder
    task: Task
    device: torch.device
    engine: PairEngine | None = None
    """Runs the dense part of a model that can be split; None: PyTorch runs it."""

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
        if self.engine is None:
            return self.task.predict(self.task.module, batch).float().cpu().numpy()
        embeddings, rows = self._looked_up(batch), torch.arange(len(batch.dense))
        users, items = (side.of(batch.dense, embeddings) for side in (self._pairs.user_columns, self._pairs.item_columns))
        return self.engine(users, items, rows, rows)

    @torch.inference_mode()
    def look_up(self, columns: Columns, *sides: Side) -> PairSide:
        """Looks up rows of users (QUERY_SIDES) or of items, so that this is done once and not once a pair.

        `columns` has the encoded columns of these sides.
        """
        if self.task.split is None:
            return columns
        batch = self._batch(without_values(columns, self.schema))
        side = self._pairs.item_columns if sides == ("item",) else self._pairs.user_columns
        return side.of(batch.dense, self._looked_up(batch))

    @torch.inference_mode()
    def score_pairs(self, users: PairSide, items: PairSide, user: torch.Tensor, item: torch.Tensor) -> np.ndarray:
        """Returns the score of each pair, float32 [B]; `user` and `item`, int64 [B], are rows of `users` and of `items`."""
        if not len(user):
            return np.zeros(0, np.float32)
        if not isinstance(users, SideFeatures):
            assert not isinstance(items, SideFeatures)
            return self.predict_encoded({**take_rows(users, user), **take_rows(items, item)})
        if not isinstance(items, SideFeatures):
            return self.score_pairs(users, self.look_up(take_rows(items, item), "item"), user, torch.arange(len(item)))
        if self.engine is not None:
            return self.engine(users, items, user, item)
        return self._pairs(users, items, user.to(self.device), item.to(self.device)).float().cpu().numpy()

    @cached_property
    def _pairs(self) -> PairScores:
        assert self.task.split is not None
        return PairScores(self.task.split, self.schema).eval()

    def _looked_up(self, batch: Batch) -> torch.Tensor:
        assert self.task.split is not None
        return self.task.split.lookup(batch)

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
