"""Small models for the online service: two retrieval models and two ranking models, of which one is trained and has a test split
of rows with missing and unseen values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from recsys_ray.schema import Categorical, Dense, Label, Schema, Weight
from tests.support.runs import dlrm_config, train_and_keep_predictions
from tests.support.workers import run_workers

RETRIEVER = TwoTowerConfig(embedding_dim=16, query_layers=(32,), candidate_layers=())
RANKER = DLRMConfig(embedding_dim=8, dense_layers=(16,), over_layers=(32,))
RANKED = Schema(
    (
        Label("chosen"),
        Categorical("user_id", "user", num_embeddings=1000),
        Categorical("country", "user", "string", "vocabulary"),
        Categorical("recent_items", "user", encoding="vocabulary", multi=True, table="item_id"),
        Categorical("item_id", "item", encoding="vocabulary"),
        Categorical("kind", "item", "string", num_embeddings=50),
        Dense("size", "item", scale="standard"),
        Weight("weight"),
    )
)
"""The columns of the trained ranking model. The weight of a row of the test split tells which row it is."""
TEST_ROWS, STRANGER = 10_000, 10**9


class ServedRuns(NamedTuple):
    """The dataset, the raw tables that it was made from, and run directories by letter, a and b. Ranking model a is trained."""

    dataset: DatasetDirectory
    raw: Path
    retrievers: dict[str, Path]
    rankers: dict[str, Path]
    test_rows: pa.Table
    """The raw rows of the test split of ranking model a."""


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
    retrievers = {
        letter: write_untrained_bundle(folder / f"retriever_{letter}", dataset, RETRIEVER, seed)
        for seed, letter in enumerate("ab")
    }
    clicks = with_users_and_items(raw)
    test = numbered(with_gaps(clicks, TEST_ROWS))
    rankers = {
        "a": train_ranker(folder / "ranker_a", clicks, test),
        "b": write_untrained_bundle(folder / "ranker_b", dataset, RANKER, 11),
    }
    return ServedRuns(dataset, raw, retrievers, rankers, test)


def with_users_and_items(raw: Path) -> pa.Table:
    """Returns the interactions with the columns of their users and items; each has the weight 1."""
    clicks = pq.read_table(raw / "interactions.parquet").drop_columns(["timestamp"])
    for name, key, columns in (("users", "user_id", ["country"]), ("items", "item_id", ["kind", "size"])):
        there = pq.read_table(raw / f"{name}.parquet")
        for column in columns:
            clicks = clicks.append_column(column, there[column].take(clicks[key]))
    return clicks.append_column("weight", pa.repeat(1.0, len(clicks)))


def with_gaps(clicks: pa.Table, rows: int) -> pa.Table:
    """Draws rows in each column of which a tenth of the values is missing, and of the ids another tenth was never seen."""
    random = np.random.default_rng(2)
    table = clicks.take(random.integers(0, len(clicks), rows))
    recent = [[*items, STRANGER][random.integers(0, 3) :] for items in table["recent_items"].to_pylist()]
    drawn = {
        "recent_items": pa.chunked_array([pa.array(recent, pa.list_(pa.int64()))]),
        "size": pa.array(random.normal(4, 2, rows)),
    }
    unseen = {"user_id": STRANGER, "item_id": STRANGER, "country": "Atlantis", "kind": "odd"}
    for number, column in enumerate(table.column_names):
        values = drawn.get(column, table[column])
        if column in unseen:
            values = pc.if_else(random.random(rows) < 0.1, pa.scalar(unseen[column]), values)
        if column in unseen or column in drawn:
            values = pc.if_else(random.random(rows) < 0.1, pa.scalar(None, values.type), values)
        table = table.set_column(number, column, values)
    return table


def numbered(rows: pa.Table) -> pa.Table:
    """Returns the rows with weights 1, 2, 3 and so on, which float32 holds exactly."""
    return rows.set_column(rows.column_names.index("weight"), "weight", pa.array(np.arange(1.0, len(rows) + 1)))


def train_ranker(run_dir: Path, clicks: pa.Table, test: pa.Table) -> Path:
    """Trains a ranking model of `clicks` with two workers, which keep what they predict for the rows of `test`."""
    raw = run_dir.with_name("ranked")
    raw.mkdir()
    parts = [table.append_column("split", pa.repeat(split, len(table))) for split, table in (("train", clicks), ("test", test))]
    pq.write_table(pa.concat_tables(parts), raw / "interactions.parquet")
    (raw / "schema.json").write_text(RANKED.to_json())
    split = SplitConfig(by="column", column="split")
    out = str(run_dir.with_name("ranked_dataset"))
    dataset = prepare(PrepareConfig("ray", str(raw / "interactions.parquet"), out=out, block_rows=64, split=split))
    run_workers(train_and_keep_predictions, 2, dlrm_config(dataset.root, run_dir, epochs=2, global_batch=512))
    return run_dir
