"""The model bundle of a run, ready for use: a Two Tower on one CPU, unsharded, with what encodes its inputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file

from recsys_ray.config import TrainConfig
from recsys_ray.config.serialization import from_json
from recsys_ray.data.blocks.packing import to_block
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.transform import Vocabularies, transform
from recsys_ray.models.registry import build_task, model_config, model_name
from recsys_ray.models.task import BuildContext, Task
from recsys_ray.models.two_tower import TwoTower, TwoTowerConfig
from recsys_ray.models.two_tower_batch import candidate_batch, query_batch
from recsys_ray.schema import Schema

MODEL_WEIGHTS = Path("model", "weights.safetensors")
"""Where the weights are in a run directory."""


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
    """Loads the Two Tower of a finished run. Raises FileNotFoundError without weights, ValueError for another model's run."""
    run_dir = Path(run_dir)
    if not (run_dir / MODEL_WEIGHTS).exists():
        raise FileNotFoundError(f"{run_dir} has no {MODEL_WEIGHTS}: train a Two Tower there first, with jobs/train_two_tower.py")
    config = from_json((run_dir / "config.json").read_text(), model_config)
    if not isinstance(config.model, TwoTowerConfig):
        raise ValueError(f"{run_dir} did not train a Two Tower but a {model_name(config.model)}")
    # The dataset's own schema may belong to a later preparation.
    schema = Schema.load(run_dir / "model" / "schema.json")
    version = hashlib.sha256((run_dir / MODEL_WEIGHTS).read_bytes()).hexdigest()[:16]
    vocabularies = load_vocabularies(run_dir / "model", schema)
    model = load_task(run_dir, config, schema).module.model
    assert isinstance(model, TwoTower)
    return Retriever(model, schema, vocabularies, version, config.model.embedding_dim, Path(config.data.path))


def load_task(run_dir: Path, config: TrainConfig, schema: Schema) -> Task:
    """Builds the model of a finished run on the CPU, unsharded, with its exported weights; it can predict but not train."""
    with torch.random.fork_rng(devices=[]):  # building draws weights, which the exported ones replace
        task = build_task(config.model, BuildContext(schema, torch.device("cpu")))
    task.module.load_state_dict(load_file(run_dir / MODEL_WEIGHTS), assign=True)
    task.module.eval()
    return task
