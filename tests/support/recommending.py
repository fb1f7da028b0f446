"""Writes what jobs/recommend.py reads in tests, and computes the same recommendations one user at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.serving.batch.recommending.inputs import RecommendConfig
from recsys_ray.serving.bundle import load_ranker, load_retriever
from tests.support import two_stages
from tests.support.two_stages import TwoStages

K, CANDIDATES = 5, 40


def write_tables(runs: TwoStages, folder: Path) -> Path:
    """Writes users and what they have seen, in several files and small row groups."""
    (folder / "users").mkdir(parents=True)
    users = two_stages.users_of_every_kind(runs.raw)
    for number, start in enumerate((0, 170)):
        pq.write_table(users.slice(start, 170), folder / "users" / f"{number}.parquet", row_group_size=64)
    pq.write_table(two_stages.seen_by_every_kind(runs.raw), folder / "seen.parquet")
    return folder


def recommend_config(runs: TwoStages, tables: Path, out: Path, **settings: Any) -> RecommendConfig:
    """Returns the settings of a job on the tables that write_tables wrote; `settings` replace some."""
    common = {
        "retriever": str(runs.retriever), "ranker": str(runs.ranker), "users": str(tables / "users"), "out": str(out),
        "interactions": (str(tables / "seen.parquet"),), "candidates": CANDIDATES, "k": K, "history": "recent_items",
        "history_length": 10, "users_per_file": 100, "workers": 1, "inference": "torch",
    }  # fmt: skip
    return RecommendConfig(**{**common, **settings})


class Reference:
    """Recommendations computed one user at a time, with raw columns."""

    def __init__(self, runs: TwoStages, tables: Path) -> None:
        self.retriever, self.ranker = load_retriever(runs.retriever), load_ranker(runs.ranker)
        catalogue = load_catalogue(DatasetDirectory.open(runs.dataset))
        self.frequency, self.items = catalogue[FREQUENCY].to_numpy(), catalogue.drop_columns([FREQUENCY])
        self.vectors = self.retriever.embed_candidates(self.items)
        self.seen: dict[Any, list[int]] = {}
        seen = pq.read_table(tables / "seen.parquet").sort_by("timestamp").to_pylist()
        for row in seen:
            self.seen.setdefault(row["user_id"], []).append(row["item_id"])

    def popular(self, user: dict[str, Any]) -> list[int]:
        order = np.argsort(-self.frequency, kind="stable")
        return [item for item in order.tolist() if item not in self.seen.get(user["user_id"], [])][:K]

    def scores(self, user: dict[str, Any]) -> dict[int, tuple[float, float]]:
        """Returns retrieval and ranking score of each candidate."""
        seen = self.seen.get(user["user_id"], [])
        row = pa.Table.from_pylist([{**user, "recent_items": seen[::-1][:10]}])
        scores = self.retriever.embed_queries(row)[0] @ self.vectors.T
        scores[seen] = -np.inf
        chosen = [item for item in np.argsort(-scores)[:CANDIDATES].tolist() if scores[item] > -np.inf]
        pairs = self.items.take(chosen)
        for name in row.column_names:
            pairs = pairs.append_column(name, pa.concat_arrays([row[name].chunk(0)] * len(chosen)))
        return dict(zip(chosen, zip(scores[chosen], self.ranker.predict(pairs), strict=True), strict=True))
