"""A trained retrieval model that maps raw columns to vectors, whose dot products are scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recsys_ray.bundle.manifest import Manifest
from recsys_ray.columns import Columns
from recsys_ray.models.task import Task, Towers
from recsys_ray.schema import QUERY_SIDES, Categorical, Schema, Side
from recsys_ray.serving.encoder import Encoder, RawRows, as_table

ROWS_EMBEDDED = 1 << 14
"""Items that are embedded together."""


@dataclass(frozen=True)
class Retriever:
    """A trained model with two towers, on one CPU or GPU."""

    manifest: Manifest
    encoder: Encoder
    task: Task
    device: torch.device

    @property
    def version(self) -> str:
        """Names the weights: an index is built by one version and is searched with the same."""
        return self.manifest.version

    @property
    def schema(self) -> Schema:
        """The columns that the model was trained on."""
        return self.encoder.schema

    @property
    def dataset(self) -> Path:
        """The dataset directory that the model was trained on."""
        return Path(self.manifest.dataset["path"])

    @property
    def dim(self) -> int:
        """The numbers of a vector."""
        return self._towers.dim

    @property
    def item_key(self) -> str:
        """The name of the column that tells items apart."""
        return self._key("item").name

    @property
    def user_key(self) -> str:
        """The name of the column that tells users apart."""
        return self._key("user").name

    @property
    def _towers(self) -> Towers:
        assert self.task.towers is not None
        return self.task.towers

    def _key(self, side: Side) -> Categorical:
        key = self.schema.key(side)
        assert key is not None
        return key

    def embed_queries(self, rows: RawRows) -> np.ndarray:
        """Returns query vectors, float32 [rows, dim], of raw user and context columns. Raises ValueError as `Encoder.encode`."""
        return self.embed_encoded_queries(self.encoder.encode(rows, self.schema.features_of(*QUERY_SIDES)))

    def embed_candidates(self, rows: RawRows) -> np.ndarray:
        """Returns candidate vectors, float32 [rows, dim], of raw item columns. Raises ValueError as `Encoder.encode`."""
        wanted = self.schema.features_of("item")
        table, embed = as_table(rows), self._towers.embed_candidate
        with torch.inference_mode():
            parts = [
                embed(self.task.module, self.encoder.encode(table.slice(start, ROWS_EMBEDDED), wanted), self.device).cpu().numpy()
                for start in range(0, max(table.num_rows, 1), ROWS_EMBEDDED)
            ]
        return np.concatenate(parts)

    def embed_encoded_queries(self, columns: Columns) -> np.ndarray:
        """Returns query vectors, float32 [rows, dim], of columns that are encoded as in a dataset directory."""
        with torch.inference_mode():
            return self._towers.embed_query(self.task.module, columns, self.device).cpu().numpy()
