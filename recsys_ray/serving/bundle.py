"""The model bundle of a run, ready for use: a Two Tower on one CPU, unsharded, with what encodes its inputs."""

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

from recsys_ray.data.blocks.records import to_block
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.transform import Vocabularies, transform
from recsys_ray.models.two_tower import TwoTower, TwoTowerConfig
from recsys_ray.models.two_tower_batch import candidate_batch, query_batch
from recsys_ray.schema import Schema

MODEL_WEIGHTS = Path("model", "weights.safetensors")
"""Where the weights are in a run directory."""
MODEL_PREFIX = "model."
"""The start of the names of a Two Tower's weights: training wraps it in a module that adds the loss."""


@dataclass(frozen=True)
class Retriever:
    """A trained Two Tower that maps raw columns to vectors, through the transform that training used."""

    model: TwoTower
    schema: Schema
    vocabularies: Vocabularies
    version: str
    """Names the weights: an index is built by one version and is searched with the same."""
    dim: int
    dataset: Path
    """The dataset directory that the model was trained on."""

    @property
    def item_key(self) -> str:
        """The name of the column that tells items apart."""
        key = self.schema.key("item")
        assert key is not None
        return key.name

    def embed_queries(self, rows: pa.Table) -> np.ndarray:
        """Returns query vectors, float32 [rows, embedding_dim], of raw user and context columns."""
        return self.embed_encoded_queries(self._encoded(rows))

    def embed_candidates(self, rows: pa.Table) -> np.ndarray:
        """Returns candidate vectors, float32 [rows, embedding_dim], of raw item columns."""
        with torch.no_grad():
            return self.model.embed_candidate(candidate_batch(self.schema, self._encoded(rows))).numpy()

    def embed_encoded_queries(self, columns: dict[str, torch.Tensor]) -> np.ndarray:
        """Returns query vectors, float32 [rows, embedding_dim], of columns that are encoded as in a dataset directory."""
        with torch.no_grad():
            return self.model.embed_query(query_batch(self.schema, columns)).numpy()

    def _encoded(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        block = to_block(transform(rows, self.schema, self.vocabularies))
        return {name: torch.from_numpy(values.copy()) for name, values in block.items()}


def load_retriever(run_dir: str | Path) -> Retriever:
    """Loads the model of a finished run.

    Raises FileNotFoundError where the run has no weights, and ValueError where it trained another model.
    """
    run_dir = Path(run_dir)
    if not (run_dir / MODEL_WEIGHTS).exists():
        raise FileNotFoundError(f"{run_dir} has no {MODEL_WEIGHTS}: train a Two Tower there first, with jobs/train_two_tower.py")
    config = json.loads((run_dir / "config.json").read_text())
    settings = two_tower_config(config["model"], run_dir)
    # The dataset's own schema may belong to a later preparation.
    schema = Schema.load(run_dir / "model" / "schema.json")
    model = TwoTower(settings, schema, torch.device("cpu"))
    weights = load_file(run_dir / MODEL_WEIGHTS)
    own = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in weights.items() if name.startswith(MODEL_PREFIX)}
    model.load_state_dict(own, assign=True)
    version = hashlib.sha256((run_dir / MODEL_WEIGHTS).read_bytes()).hexdigest()[:16]
    vocabularies = load_vocabularies(run_dir / "model", schema)
    return Retriever(model.eval(), schema, vocabularies, version, settings.embedding_dim, Path(config["data"]["path"]))


def two_tower_config(model: dict[str, Any], run_dir: Path) -> TwoTowerConfig:
    """Returns the `model` part of a config.json. Raises ValueError where it is another model's."""
    if set(model) != {field.name for field in fields(TwoTowerConfig)}:
        raise ValueError(f"{run_dir} did not train a Two Tower, or one of another version of this package")
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
    return TwoTowerConfig(**settings)
