"""A trained ranking model that scores rows of raw columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys_ray.bundle.manifest import Manifest
from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.models.task import Task
from recsys_ray.schema import Schema
from recsys_ray.serving.encoder import Encoder, RawRows, as_table

PREDICTED_AT_ONCE = 8192


@dataclass(frozen=True)
class Ranker:
    """A trained model of rows, on one CPU or GPU."""

    manifest: Manifest
    encoder: Encoder
    task: Task
    device: torch.device

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

    def predict_encoded(self, columns: Columns) -> np.ndarray:
        """Returns the score of every row of columns that are encoded as in a dataset directory, float32 [rows]."""
        if not row_count(columns, self.schema):
            return np.zeros(0, np.float32)
        with torch.inference_mode():
            batch = self.task.to_batch(with_placeholders(columns, self.schema)).to(self.device)
            return self.task.predict(self.task.module, batch).float().cpu().numpy()


def row_count(columns: Columns, schema: Schema) -> int:
    """Returns the number of rows of encoded feature columns."""
    name = schema.features[0].name
    return len(columns.get(name + LENGTHS, columns[name]))


def with_placeholders(columns: Columns, schema: Schema) -> dict[str, Any]:
    """Adds the columns that only training reads, label and weight, which do not change a score."""
    rows = row_count(columns, schema)
    label = {schema.label.name: torch.zeros(rows)} if schema.label else {}
    return {**columns, **label, ROW_WEIGHT: torch.ones(rows)}
