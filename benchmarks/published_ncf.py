"""Retrieval on MovieLens 1M by the protocol of Neural Collaborative Filtering, beside its published table.

    python benchmarks/published_ncf.py --data ../shared/data/ncf-ml-1m [--seeds 3] [--work runs/published-ncf]
    python benchmarks/published_ncf.py --data ../shared/data/ncf-ml-1m --held-out validation     # what the settings were chosen on

Protocol (He et al. 2017, arXiv:1708.05031): each user's latest interaction is the test item, ranked among 99 negatives that come
with the data; HR@10 and NDCG@10. Here a negative with the positive's score is ranked above it. Published figures: Rendle et al.
2020, "Neural Collaborative Filtering vs. Matrix Factorization Revisited" (arXiv:2005.09683). The same models are then ranked
against the whole catalogue without what a user has seen, beside EASE (Steck 2019, arXiv:1905.03375) and iALS.

Two Tower knows a user by id and by the items before; with the former alone it is plain matrix factorisation, shown too. Settings
were chosen on each user's last training interaction, held out for that (`--held-out validation`), never on the test items.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from recsys_ray.config import (
    DataConfig,
    LaunchConfig,
    LoopConfig,
    OptimizerConfig,
    PrepareConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
    TwoTowerConfig,
)
from recsys_ray.data.prepare import prepare
from recsys_ray.datasets.histories import with_recent_items
from recsys_ray.launch.launcher import launcher
from recsys_ray.schema import Categorical, Schema, Timestamp
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.training.train import train

USERS, ITEMS, RECENT = 6040, 3706, 20
PUBLISHED = {
    "tuned matrix factorisation (Rendle et al. 2020)": (0.7294, 0.4523),
    "NeuMF (He et al. 2017)": (0.7093, 0.4349),
    "popularity": (0.4538, 0.2536),
}
USER = Categorical("user_id", "user", encoding="identity", num_embeddings=USERS + 1, key=True)
ITEM = Categorical("item_id", "item", encoding="identity", num_embeddings=ITEMS + 1, key=True, table="item")
HISTORY = Categorical("recent_items", "user", encoding="identity", num_embeddings=ITEMS + 1, multi=True, table="item")


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data/ncf-ml-1m")
    seeds: int = 3
    work: Path = Path("runs/published-ncf")
    held_out: Literal["test", "validation"] = "test"
    """What is ranked: the test items, after training on all others, or each user's last training item, with random negatives."""


def interactions(data: Path, held_out: str) -> pd.DataFrame:
    """user_id, item_id, timestamp, split, in the order of time; rows of one moment in an order of chance."""
    names = ["user_id", "item_id", "rating", "timestamp"]
    known = pd.read_csv(data / "ml-1m.train.rating", sep="\t", names=names)
    test = pd.read_csv(data / "ml-1m.test.rating", sep="\t", names=names)
    known = known.sample(frac=1, random_state=0).sort_values(["user_id", "timestamp"], kind="stable")
    if held_out == "test":
        # Later than all others, so that no training row has the test item among those before it.
        rows = pd.concat([known.assign(split="train"), test.assign(split="test", timestamp=known["timestamp"].max() + 1)])
    else:
        last = ~known.duplicated("user_id", keep="last")
        rows = known.assign(split=np.where(last, "test", "train"))
    return rows.sort_values(["user_id", "timestamp"], kind="stable")[["user_id", "item_id", "timestamp", "split"]]


def negatives(data: Path, held_out: str, rows: pd.DataFrame) -> np.ndarray:
    """int64 [users, 99]: those of the protocol, or for validation as many drawn from what the user never chose."""
    if held_out == "test":
        lines = pd.read_csv(data / "ml-1m.test.negative", sep="\t", header=None)
        return lines.drop(columns=0).to_numpy()
    chosen = np.zeros((USERS, ITEMS), bool)
    chosen[rows["user_id"], rows["item_id"]] = True
    noise = np.random.default_rng(0).random((USERS, ITEMS))
    noise[chosen] = 2
    return np.argpartition(noise, 99, axis=1)[:, :99]


def dataset(work: Path, name: str, rows: pd.DataFrame, schema: Schema) -> str:
    work.mkdir(parents=True, exist_ok=True)
    table = with_recent_items(pa.Table.from_pandas(rows, preserve_index=False), RECENT)
    pq.write_table(table, work / f"{name}.parquet")
    (work / f"{name}.json").write_text(schema.to_json())
    split = SplitConfig(by="column", column="split")
    return str(
        prepare(
            PrepareConfig(
                parquet=str(work / f"{name}.parquet"),
                schema=str(work / f"{name}.json"),
                out=str(work / f"dataset-{name}"),
                split=split,
                overwrite=True,
            )
        ).root
    )
