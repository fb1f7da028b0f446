"""A trained Two Tower for use: on one CPU, unsharded, with the schema and vocabularies that encode its inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file

from recsys_ray.config import TwoTowerConfig
from recsys_ray.data.blocks.records import to_block
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.transform import Vocabularies, transform
from recsys_ray.models.two_tower import TwoTower
from recsys_ray.models.two_tower_batch import candidate_batch, query_batch
from recsys_ray.schema import Schema

WEIGHTS = Path("model", "weights.safetensors")
PREFIX = "model."


@dataclass(frozen=True)
class Retriever:
    """Raw columns -> vectors, by the transform that training used."""

    model: TwoTower
    schema: Schema
    vocabularies: Vocabularies
    version: str
    """Of the weights: what an index is built by, and must be searched with."""
    dim: int
    dataset: Path
    """The dataset directory it was trained on."""

    @property
    def item_key(self) -> str:
        key = self.schema.key("item")
        assert key is not None
        return key.name

    def embed_queries(self, rows: pa.Table) -> np.ndarray:
        """float32 [rows, embedding_dim] of raw user and context columns."""
        return self.embed_encoded_queries(self._encoded(rows))

    def embed_candidates(self, rows: pa.Table) -> np.ndarray:
        """float32 [rows, embedding_dim] of raw item columns."""
        with torch.no_grad():
            return self.model.embed_candidate(candidate_batch(self.schema, self._encoded(rows))).numpy()

    def embed_encoded_queries(self, columns: dict[str, torch.Tensor]) -> np.ndarray:
        """The same of columns as a dataset directory holds them."""
        with torch.no_grad():
            return self.model.embed_query(query_batch(self.schema, columns)).numpy()

    def _encoded(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        block = to_block(transform(rows, self.schema, self.vocabularies))
        return {name: torch.from_numpy(values.copy()) for name, values in block.items()}


def load_retriever(run_dir: str | Path) -> Retriever:
    """Of a finished run. Raises FileNotFoundError where it has no weights, ValueError where it trained another model."""
    run_dir = Path(run_dir)
    if not (run_dir / WEIGHTS).exists():
        raise FileNotFoundError(f"{run_dir} has no {WEIGHTS}: train a Two Tower there first, with jobs/train_two_tower.py")
    config = json.loads((run_dir / "config.json").read_text())
    settings = two_tower_config(config["model"], run_dir)
    # Not the dataset's own, which may have been prepared anew since.
    schema = Schema.load(run_dir / "model" / "schema.json")
    model = TwoTower(settings, schema, torch.device("cpu"))
    weights = load_file(run_dir / WEIGHTS)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    model.load_state_dict(own, assign=True)
    version = hashlib.sha256((run_dir / WEIGHTS).read_bytes()).hexdigest()[:16]
    vocabularies = load_vocabularies(run_dir / "model", schema)
    return Retriever(model.eval(), schema, vocabularies, version, settings.embedding_dim, Path(config["data"]["path"]))


def two_tower_config(model: dict[str, Any], run_dir: Path) -> TwoTowerConfig:
    """Of the `model` part of a config.json. Raises ValueError where it is that of another model."""
    if set(model) != {field.name for field in fields(TwoTowerConfig)}:
        raise ValueError(f"{run_dir} did not train a Two Tower, or one of another version of this package")
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
    return TwoTowerConfig(**settings)
