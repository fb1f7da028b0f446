"""Measures retrieval on MovieLens 1M by the protocol of Neural Collaborative Filtering, and prints it with the published figures.

    python benchmarks/published_ncf.py --data ../shared/data/ncf-ml-1m [--seeds 3] [--work runs/published-ncf]
    python benchmarks/published_ncf.py --held-out validation        # the items that the settings were chosen on

Protocol (He et al. 2017, arXiv:1708.05031): each user's latest interaction is the test item, ranked among 99 negatives that come
with the data; HR@10 and NDCG@10. Here a negative with the same score as the positive is ranked above it. Published figures are of
Rendle et al. 2020, "Neural Collaborative Filtering vs. Matrix Factorization Revisited" (arXiv:2005.09683). The same models are
then evaluated on the whole catalogue minus what a user has seen, together with EASE (Steck 2019, arXiv:1905.03375) and iALS.

The Two Tower sees a user's id and recent items; with the id alone it is plain matrix factorisation, which is shown too. Settings
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
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets.histories import with_recent_items
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.evaluation.baselines import solve_ials, train_ials
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, rank_catalogue
from recsys_ray.models.two_tower import TwoTowerConfig
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
class Variant:
    columns: tuple[Categorical, ...]
    model: TwoTowerConfig
    epochs: int


FACTORS = TwoTowerConfig(embedding_dim=64, query_layers=(), candidate_layers=(), dropout=0.3, metrics_at=(10, 20))
WITH_HISTORY = replace(FACTORS, pooling="attention", pooled_values=RECENT, query_layers=(128,), dropout=0.2)
VARIANTS = {
    "Two Tower, id and recent items": Variant((USER, ITEM, HISTORY), WITH_HISTORY, epochs=8),
    "Two Tower, ids alone (matrix factorisation)": Variant((USER, ITEM), FACTORS, epochs=12),
}


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data/ncf-ml-1m")
    seeds: int = 3
    work: Path = Path("runs/published-ncf")
    held_out: Literal["test", "validation"] = "test"
    """The items that are ranked: the test items, after training on all others, or each user's last training item, with random
    negatives."""


def interactions(data: Path, held_out: str) -> pd.DataFrame:
    """Returns user_id, item_id, timestamp and split by user and time; rows with the same time are in random order."""
    names = ["user_id", "item_id", "rating", "timestamp"]
    known = pd.read_csv(data / "ml-1m.train.rating", sep="\t", names=names)
    test = pd.read_csv(data / "ml-1m.test.rating", sep="\t", names=names)
    known = known.sample(frac=1, random_state=0).sort_values(["user_id", "timestamp"], kind="stable")
    if held_out == "test":
        # Later than all others, so that no training row has the test item in its history.
        rows = pd.concat([known.assign(split="train"), test.assign(split="test", timestamp=known["timestamp"].max() + 1)])
    else:
        last = ~known.duplicated("user_id", keep="last")
        rows = known.assign(split=np.where(last, "test", "train"))
    return rows.sort_values(["user_id", "timestamp"], kind="stable")[["user_id", "item_id", "timestamp", "split"]]


def negatives(data: Path, held_out: str, rows: pd.DataFrame) -> np.ndarray:
    """Returns int64 [users, 99]: the protocol's negatives, or for validation random items that the user never chose."""
    if held_out == "test":
        lines = pd.read_csv(data / "ml-1m.test.negative", sep="\t", header=None)
        return lines.drop(columns=0).to_numpy()
    chosen = np.zeros((USERS, ITEMS), bool)
    chosen[rows["user_id"], rows["item_id"]] = True
    noise = np.random.default_rng(0).random((USERS, ITEMS))
    noise[chosen] = 2
    return np.argpartition(noise, 99, axis=1)[:, :99]


def dataset(work: Path, name: str, rows: pd.DataFrame, schema: Schema) -> tuple[str, pa.Table]:
    """Prepares a dataset directory of the rows with each user's recent items, and returns its path and those rows."""
    work.mkdir(parents=True, exist_ok=True)
    table = with_recent_items(pa.Table.from_pandas(rows, preserve_index=False), RECENT)
    parquet, described, out = (str(work / file) for file in (f"{name}.parquet", f"{name}.json", f"dataset-{name}"))
    pq.write_table(table, parquet)
    Path(described).write_text(schema.to_json())
    split = SplitConfig(by="column", column="split")
    made = prepare(PrepareConfig(parquet=parquet, schema=described, out=out, split=split, overwrite=True))
    return str(made.root.absolute()), table


def config(run_dir: Path, path: str, model: TwoTowerConfig, epochs: int, seed: int) -> TrainConfig:
    return TrainConfig(
        run_dir=str(run_dir.absolute()),
        data=DataConfig(path=path),
        model=model,
        optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.1),
        train=LoopConfig(epochs=epochs, global_batch=1024, patience=0, log_every=1000, seed=seed),
        tracking=TrackingConfig(experiment="published-ncf"),
        launch=LaunchConfig(engine="local"),
    )


def sampled(scores: np.ndarray, rows: pd.DataFrame, given: np.ndarray) -> tuple[float, float]:
    """Returns HR@10 and NDCG@10 of the held-out items among their negatives; scores: [users, items]."""
    held_out = rows[rows["split"] == "test"].sort_values("user_id")
    positive = scores[held_out["user_id"], held_out["item_id"]]
    ranks = (np.take_along_axis(scores, given, axis=1) >= positive[:, None]).sum(axis=1)
    return float((ranks < 10).mean()), float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def two_tower_scores(variant: Variant, name: str, rows: pd.DataFrame, work: Path, seed: int) -> np.ndarray:
    """Trains a new model and returns its scores [users, items], with the query features of the held-out rows."""
    path, table = dataset(work, name, rows, Schema((*variant.columns, Timestamp("timestamp"))))
    run_dir = work / f"run-{name}-{seed}"
    shutil.rmtree(run_dir, ignore_errors=True)
    settings = config(run_dir, path, variant.model, variant.epochs, seed)
    with launcher(settings.launch) as engine:
        engine.run(train, settings)
    retriever = load_retriever(run_dir)
    held_out = table.filter(pc.equal(table["split"], "test")).sort_by("user_id")
    return retriever.embed_queries(held_out) @ retriever.embed_candidates(pa.table({"item_id": np.arange(ITEMS)})).T


def ease_scores(rows: pd.DataFrame, regularization: float = 1000.0) -> np.ndarray:
    """Returns the scores of EASE, item-item weights in closed form.

    The regularization was chosen among 300, 1000 and 3000 on the validation items.
    """
    known = rows[rows["split"] == "train"]
    chosen = np.zeros((USERS, ITEMS), np.float32)
    chosen[known["user_id"], known["item_id"]] = 1
    inverse = np.linalg.inv(chosen.T @ chosen + regularization * np.eye(ITEMS, dtype=np.float32))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return chosen @ weights


def ials_scores(rows: pd.DataFrame) -> np.ndarray:
    """Returns the scores of the package's iALS, whose weights were chosen on the validation items too."""
    known = rows[rows["split"] == "train"]
    pairs = Pairs.of(torch.tensor(known["user_id"].to_numpy()), torch.tensor(known["item_id"].to_numpy()))
    factors = train_ials(pairs, USERS, ITEMS)
    return (solve_ials(pairs, USERS, factors) @ factors.T).numpy()


def full(scores: np.ndarray, rows: pd.DataFrame) -> tuple[float, float]:
    """Returns recall@20 and NDCG@20 over the whole catalogue minus what the user has seen."""
    known, held_out = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
    seen, relevant = (
        Pairs.of(torch.tensor(part["user_id"].to_numpy()), torch.tensor(part["item_id"].to_numpy())) for part in (known, held_out)
    )
    matrix = torch.from_numpy(scores)
    nothing = torch.zeros(USERS, dtype=torch.int64)
    ranked = rank_catalogue(
        lambda first, stop: matrix[first:stop].clone(),
        relevant=relevant,
        missing=nothing,
        seen=seen,
        num_items=ITEMS,
        metrics_at=(20,),
    )
    return float(ranked.metrics["recall_at_20"].mean()), float(ranked.metrics["ndcg_at_20"].mean())


def table_of(data: Path, held_out: str, work: Path, seeds: int) -> dict[str, dict[str, float]]:
    """Returns for each model HR, NDCG, recall@20, NDCG@20, and the standard deviation of the first two over seeds."""
    rows = interactions(data, held_out)
    given = negatives(data, held_out, rows)
    found: dict[str, list[tuple[float, ...]]] = {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        scores = (two_tower_scores(variant, f"{held_out}-{number}", rows, work, seed) for seed in range(seeds))
        found[name] = [(*sampled(one, rows, given), *full(one, rows)) for one in scores]
    for name, one in (("EASE (here)", ease_scores(rows)), ("iALS (here)", ials_scores(rows))):
        found[name] = [(*sampled(one, rows, given), *full(one, rows))]
    names = ("hr_at_10", "ndcg_at_10", "recall_at_20", "ndcg_at_20")
    return {
        name: dict(zip(names, np.mean(measured, axis=0).tolist(), strict=True))
        | {"hr_spread": float(np.std([one[0] for one in measured])), "ndcg_spread": float(np.std([one[1] for one in measured]))}
        for name, measured in found.items()
    }


def main(arguments: Arguments) -> None:
    figures = table_of(arguments.data, arguments.held_out, arguments.work, arguments.seeds)
    print(f"\n{'':<50}{'HR@10':>8}{'NDCG@10':>9}{'± HR':>8}{'± NDCG':>8}   full ranking: {'recall@20':>9}{'NDCG@20':>9}")
    for name, row in figures.items():
        sampled_part = f"{row['hr_at_10']:>8.4f}{row['ndcg_at_10']:>9.4f}{row['hr_spread']:>8.4f}{row['ndcg_spread']:>8.4f}"
        print(f"{name:<50}{sampled_part}{'':17}{row['recall_at_20']:>9.4f}{row['ndcg_at_20']:>9.4f}")
    for name, (hit_rate, ndcg) in PUBLISHED.items():
        print(f"{name + ', published':<50}{hit_rate:>8.4f}{ndcg:>9.4f}")
    print(json.dumps({"benchmark": "published_ncf", "seeds": arguments.seeds, "held_out": arguments.held_out, "rows": figures}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
