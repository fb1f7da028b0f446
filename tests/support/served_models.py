"""Small models for the online service, untrained: two retrieval models and two ranking models, all of one dataset with labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys_ray.bundle.manifest import MANIFEST, Manifest, content_version, file_entry
from recsys_ray.bundle.writer import local_parts, merged_parts, write_parts
from recsys_ray.config import ModelConfig, PrepareConfig, SplitConfig
from recsys_ray.config.serialization import MODEL_NAME
from recsys_ray.data.dataset.directory import DatasetDirectory, copy_encoding
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task, model_name
from recsys_ray.models.task import BuildContext
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.schema import Dense, Label, Schema

RETRIEVER = TwoTowerConfig(embedding_dim=16, query_layers=(32,), candidate_layers=())
RANKER = DLRMConfig(embedding_dim=8, dense_layers=(16,), over_layers=(32,))


class ServedRuns(NamedTuple):
    """The dataset, the raw tables that it was made from, and run directories by letter, a and b."""

    dataset: DatasetDirectory
    raw: Path
    retrievers: dict[str, Path]
    rankers: dict[str, Path]


def labelled_choices(folder: Path, users: int, items: int, chosen: int) -> Path:
    """Writes choices with a label: as many items that a user did not choose as ones that the user did."""
    raw = choices.generate_choices(folder / "raw", users, items, chosen)
    made = pq.read_table(raw / "interactions.parquet")
    others = made.set_column(1, "item_id", pa.array(np.random.default_rng(0).integers(0, items, len(made))))
    parts = [table.append_column("chosen", pa.array([label] * len(made))) for label, table in ((1, made), (0, others))]
    pq.write_table(pa.concat_tables(parts), raw / "interactions.parquet")
    sized = pq.read_table(raw / "items.parquet").append_column("size", pa.array(np.arange(items) % 7 + 0.5))
    pq.write_table(sized, raw / "items.parquet")
    columns = (Label("chosen"), *choices.CHOICES_SCHEMA.columns, Dense("size", "item", scale="standard"))
    (raw / "schema.json").write_text(Schema(columns).to_json())
    return raw


def write_untrained_bundle(run_dir: Path, dataset: DatasetDirectory, config: ModelConfig, seed: int) -> Path:
    """Writes the bundle of a model with random weights, as a finished run would have it."""
    folder = run_dir / "model"
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    task = build_task(config, BuildContext(dataset.schema, torch.device("cpu")))
    state = {name: torch.randn(one.shape, generator=random) * 0.3 for name, one in task.module.state_dict().items()}
    files, tensors = merged_parts(state, [write_parts(folder, local_parts(state, 0), 0)])
    (folder / "config.json").write_text(json.dumps({MODEL_NAME: model_name(config), **dataclasses.asdict(config)}))
    copy_encoding(dataset, folder)
    others = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    files |= {file.relative_to(folder).as_posix(): file_entry(file) for file in others}
    described = {"path": str(dataset.root), "fingerprint": ""}
    manifest = Manifest(model_name(config), content_version(files), 0, "", described, {}, {}, files, tensors)
    (folder / MANIFEST).write_text(manifest.to_json())
    return run_dir


def write_served_runs(folder: Path, users: int = 300, items: int = 400, chosen: int = 12) -> ServedRuns:
    """Prepares the dataset and writes two models of each kind; needs Ray."""
    raw = labelled_choices(folder, users, items, chosen)
    tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
    config = PrepareConfig("ray", *tables, out=str(folder / "dataset"), block_rows=64, split=SplitConfig(by="random"))
    dataset = prepare(config)
    runs = {
        name: {
            letter: write_untrained_bundle(folder / f"{name}_{letter}", dataset, model, seed)
            for seed, letter in enumerate("ab", start=start)
        }
        for name, model, start in (("retriever", RETRIEVER, 0), ("ranker", RANKER, 10))
    }
    return ServedRuns(dataset, raw, runs["retriever"], runs["ranker"])
