"""Retrieve, then rank, against either stage alone: MovieLens 1M by time, users of the last tenth of the ratings.

    python benchmarks/two_stages.py [--source ml-1m] [--work DIR]

The retrieval model and the rankers are trained on the first nine tenths, the ninth for validation. A test user is asked for once,
at the first rating of the test period; relevant is what the user then rates above 3 and has not rated before, and what was rated
before is not recommended. One ranker learns from ratings alone, the other also from negatives that the retrieval model found
(jobs/sample_negatives.py). Milliseconds are those of a batch of users on this machine, per user, encoding included.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
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
)
from recsys_ray.config.run import ModelConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import movielens
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.recommender.candidates import RetrievedItems, exact_candidates
from recsys_ray.serving.recommender.negatives import NegativeSampling, write_ranking_rows
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from recsys_ray.training.train import train

K, CANDIDATES, USERS_AT_ONCE = 10, 500, 64
RETRIEVER = TwoTowerConfig(embedding_dim=64, pooling="attention", query_layers=(128,), candidate_layers=(), dropout=0.2)
RANKER = DLRMConfig(interaction="dcn", embedding_dim=32, over_layers=(128, 64))


@dataclass(frozen=True)
class Job:
    """The flags of this benchmark."""

    source: str = ""
    """The unpacked ml-1m folder; empty: it is fetched."""
    work: str = ""
    """The folder in which models are kept and found again; empty: a temporary one."""
    epochs: int = 5
    """Epochs of the retrieval model; the rankers stop at their best epoch, after three at most."""


class Question(NamedTuple):
    """The test users: their rows, what they have seen, and what is relevant, as positions in the catalogue."""

    rows: pa.Table
    seen: list[np.ndarray]
    relevant: list[np.ndarray]


def training_config(folder: Path, dataset: Path, model: ModelConfig, loop: LoopConfig) -> TrainConfig:
    """Returns the configuration of one local worker."""
    optimizer = OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.1)
    return TrainConfig(
        run_dir=str(folder),
        data=DataConfig(path=str(dataset)),
        model=model,
        optimizer=optimizer if isinstance(model, TwoTowerConfig) else OptimizerConfig(),
        train=loop,
        tracking=TrackingConfig(backend="none"),
        launch=LaunchConfig(engine="local"),
    )


def trained(config: TrainConfig) -> Path:
    """Trains a model, or finds it trained, and returns its run directory."""
    with launcher(config.launch) as cluster:
        cluster.run(train, config)
    return Path(config.run_dir)


def joined(raw: Path) -> pa.Table:
    """Returns the interactions with their user's columns, and a column that says to which part of time a row belongs."""
    rows, users = pq.read_table(raw / "interactions.parquet"), pq.read_table(raw / "users.parquet")
    place = pc.index_in(rows["user_id"], value_set=users["user_id"].combine_chunks())
    for name in users.column_names[1:]:
        rows = rows.append_column(name, users[name].take(place))
    times = rows["timestamp"].to_numpy()
    parts = np.searchsorted(np.quantile(times, [0.8, 0.9]), times, side="right")
    return rows.append_column("split", pa.array(np.array(["train", "validation", "test"])[parts]))


def question(rows: pa.Table, catalogue: ServedCatalogue) -> Question:
    """Returns what is asked of every method: users with something relevant in the test period."""
    positions = catalogue.positions(rows["item_id"].combine_chunks())
    users, test = rows["user_id"].to_numpy(), rows["split"].to_numpy(zero_copy_only=False) == "test"
    good, times = rows["rating"].to_numpy() > 3, rows["timestamp"].to_numpy()
    first, seen, relevant = [], [], []
    for user in np.unique(users[test]):
        own = np.flatnonzero(users == user)
        before, after = own[~test[own]], own[test[own]]
        wanted = np.setdiff1d(positions[after[good[after]]], positions[before])
        if len(wanted):
            first.append(after[np.argmin(times[after])])
            seen.append(positions[before])
            relevant.append(wanted)
    return Question(rows.take(pa.array(first)), seen, relevant)


def metrics(found: np.ndarray, relevant: list[np.ndarray]) -> dict[str, float]:
    """Returns NDCG@10 and recall@10 of positions [U, 10]."""
    gains = 1 / np.log2(np.arange(2, K + 2))
    ndcg, recall = [], []
    for positions, wanted in zip(found, relevant, strict=True):
        hits = np.isin(positions[:K], wanted)
        ndcg.append((hits * gains).sum() / gains[: len(wanted)].sum())
        recall.append(hits.sum() / len(wanted))
    return {"ndcg_at_10": round(float(np.mean(ndcg)), 4), "recall_at_10": round(float(np.mean(recall)), 4)}


def measured(name: str, asked: Question, answer: Callable[[pa.Table, list[np.ndarray]], np.ndarray]) -> dict[str, float | str]:
    """Asks for all users in batches, and returns the metrics and the milliseconds a user."""
    began, parts = time.perf_counter(), []
    for start in range(0, len(asked.seen), USERS_AT_ONCE):
        part = slice(start, start + USERS_AT_ONCE)
        parts.append(answer(asked.rows.slice(start, USERS_AT_ONCE), asked.seen[part]))
    milliseconds = (time.perf_counter() - began) / len(asked.seen) * 1000
    return {"method": name, **metrics(np.concatenate(parts), asked.relevant), "ms_per_user": round(milliseconds, 2)}


def compared(rows: pa.Table, retriever_dir: Path, rankers: dict[str, Path]) -> list[dict[str, float | str]]:
    """Measures every method on the same users."""
    retriever = load_retriever(retriever_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    plain = Recommender(retriever, None, ServedCatalogue.load(dataset, retriever.item_key))
    items, asked = torch.from_numpy(retriever.embed_candidates(plain.catalogue.raw)), question(rows, plain.catalogue)

    def candidates(users: pa.Table, seen: list[np.ndarray], n: int) -> RetrievedItems:
        return exact_candidates(plain.queries(users), items, n, seen)

    found = [measured("retrieval alone", asked, lambda users, seen: candidates(users, seen, K).positions)]
    for name, folder in rankers.items():
        ranker = load_ranker(folder)
        both = Recommender(retriever, ranker, ServedCatalogue.load(dataset, retriever.item_key, ranker))
        for what, n in ((f"retrieve {CANDIDATES}, then rank", CANDIDATES), ("rank the whole catalogue", len(items))):

            def ranked(users: pa.Table, seen: list[np.ndarray], both: Recommender = both, n: int = n) -> np.ndarray:
                return both.recommend(users, candidates(users, seen, n), K).positions

            found.append(measured(f"{what} ({name})", asked, ranked))
    return found


def run(job: Job, work: Path) -> list[dict[str, float | str]]:
    """Prepares the data, trains the three models and compares the methods."""
    raw = movielens.fetch(work / "movielens", Path(job.source) if job.source else None)
    rows = joined(raw)
    earlier, schema = work / "earlier.parquet", str(raw / "schema.json")
    pq.write_table(rows.filter(pc.field("split") != "test"), earlier)
    split = SplitConfig(by="column", column="split")

    def prepared(name: str, parquet: Path, schema: str) -> Path:
        wanted = PrepareConfig(
            parquet=str(parquet), items=str(raw / "items.parquet"), schema=schema, out=str(work / name), split=split
        )
        return prepare(wanted).root

    dataset = prepared("dataset", earlier, schema)
    loop = LoopConfig(epochs=job.epochs, global_batch=1024, log_every=500)
    retriever = trained(training_config(work / "retriever", dataset, RETRIEVER, loop))
    sampled = work / "sampled"
    print(write_ranking_rows(str(retriever), str(earlier), "", sampled, sampling=NegativeSampling(among=CANDIDATES)))
    sources = {
        "ratings alone": dataset,
        "and negatives": prepared("sampled_dataset", sampled / "interactions.parquet", str(sampled / "schema.json")),
    }
    loop = LoopConfig(epochs=3, patience=1, log_every=500)
    rankers = {
        name: trained(training_config(work / name.replace(" ", "_"), path, RANKER, loop)) for name, path in sources.items()
    }
    return compared(rows, retriever, rankers)


def main(job: Job) -> None:
    """Prints the table and the same as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(job, Path(job.work or folder).absolute())
    print(f"{'method':<48}{'NDCG@10':>9}{'recall@10':>11}{'ms a user':>11}")
    for one in found:
        print(f"{one['method']:<48}{one['ndcg_at_10']:>9}{one['recall_at_10']:>11}{one['ms_per_user']:>11}")
    print(json.dumps({"candidates": CANDIDATES, "methods": found}))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
