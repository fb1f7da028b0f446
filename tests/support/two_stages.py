"""Both stages trained on one small data set of clicks, with a table of users of every kind to recommend to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_ray.config import DataConfig, LoopConfig, OptimizerConfig, PrepareConfig, TrackingConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.schema import Dense, Label, Schema
from recsys_ray.training.train import train
from tests.support.workers import run_workers

USERS, ITEMS, CHOSEN = 300, 120, 8
STRANGER, NAMELESS = 10**6, 10**6 + 1
"""A user whom no model knows, and one of whom they know the country alone."""
GLUTTON, LEFT = 7, 4
"""A user who has seen all items but the last few."""


@dataclass(frozen=True)
class TwoStages:
    """The folders of the raw tables, the dataset and the runs."""

    raw: Path
    dataset: Path
    retriever: Path
    ranker: Path


def train_two_stages(folder: Path) -> TwoStages:
    """Generates, prepares and trains; needs Ray."""
    raw = write_raw(folder / "raw")
    tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
    dataset = prepare(PrepareConfig("ray", *tables, out=str(folder / "dataset"), block_rows=64)).root
    common = TrainConfig(
        data=DataConfig(path=str(dataset)),
        model=TwoTowerConfig(embedding_dim=8, query_layers=(16,), candidate_layers=()),
        optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.2),
        train=LoopConfig(epochs=2, global_batch=256, patience=0),
        tracking=TrackingConfig(backend="none"),
    )
    ranking = DLRMConfig(interaction="dcn", embedding_dim=8, dense_layers=(16,), over_layers=(32,), cross_rank=8)
    runs = TwoStages(raw, dataset, folder / "two_tower", folder / "dlrm")
    run_workers(train, 1, dataclasses.replace(common, run_dir=str(runs.retriever)))
    run_workers(train, 1, dataclasses.replace(common, run_dir=str(runs.ranker), model=ranking))
    return runs


def write_raw(raw: Path) -> Path:
    """Writes choices as clicks, with as many items that were not clicked, and a price for every item."""
    choices.generate_choices(raw, USERS, ITEMS, CHOSEN)
    random = np.random.default_rng(1)
    clicked = pq.read_table(raw / "interactions.parquet")
    ignored = clicked.set_column(1, "item_id", pa.array(random.integers(0, ITEMS, clicked.num_rows)))
    both = [table.append_column("click", pa.repeat(label, table.num_rows)) for table, label in ((clicked, 1), (ignored, 0))]
    pq.write_table(pa.concat_tables(both), raw / "interactions.parquet")
    items = pq.read_table(raw / "items.parquet").append_column("price", pa.array(random.lognormal(3, 1, ITEMS)))
    pq.write_table(items, raw / "items.parquet")
    columns = (*choices.CHOICES_SCHEMA.columns, Label("click"), Dense("price", "item", scale="log1p"))
    (raw / "schema.json").write_text(Schema(columns).to_json())
    return raw


def users_of_every_kind(raw: Path) -> pa.Table:
    """Returns all users, a stranger, one with nothing but a country, one without an id, and one user a second time."""
    users = pq.read_table(raw / "users.parquet")
    more = pa.table({"user_id": [STRANGER, NAMELESS, None, 3], "country": [None, "north", None, users["country"][3].as_py()]})
    return pa.concat_tables([users, more])


def seen_by_every_kind(raw: Path) -> pa.Table:
    """Returns the clicks, those of a user who has seen nearly all items, and one of a stranger, on the most popular item."""
    clicked = (
        pq.read_table(raw / "interactions.parquet").filter(pc.field("click") == 1).select(["user_id", "item_id", "timestamp"])
    )
    items = [*range(ITEMS - LEFT), pc.mode(clicked["item_id"])[0]["mode"].as_py()]
    users = [GLUTTON] * (ITEMS - LEFT) + [STRANGER]
    more = pa.table({"user_id": users, "item_id": items, "timestamp": range(len(items))})
    return pa.concat_tables([clicked, more])


def rows_to_score(raw: Path, rows: int) -> pa.Table:
    """Returns interactions joined with users and items, of which a tenth of the values is missing and a tenth never seen."""
    random = np.random.default_rng(2)
    table = pq.read_table(raw / "interactions.parquet").drop_columns(["click"])
    table = table.take(random.integers(0, table.num_rows, rows))
    for name, key, columns in (("users", "user_id", ["country"]), ("items", "item_id", ["kind", "price"])):
        there = pq.read_table(raw / f"{name}.parquet")
        for column in columns:
            table = table.append_column(column, there[column].take(table[key]))
    for column, stranger in (("user_id", STRANGER), ("item_id", STRANGER), ("country", "Atlantis"), ("kind", "odd")):
        table = _set(table, column, pc.if_else(random.random(rows) < 0.1, pa.scalar(stranger), table[column]))
    for column in ("user_id", "item_id", "country", "kind", "recent_items", "price"):
        kind = table.schema.field(column).type
        table = _set(table, column, pc.if_else(random.random(rows) < 0.1, pa.scalar(None, kind), table[column]))
    return table


def _set(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
