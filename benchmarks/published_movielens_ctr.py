"""Measures click-through prediction on MovieLens 1M by AutoInt's protocol, and prints it with the published figures.

    python benchmarks/published_movielens_ctr.py [--seeds 3] [--work runs/published-ctr]

Protocol (Song et al. 2019, "AutoInt", arXiv:1810.11921, and the code published with it): ratings of 3 are dropped, label =
rating > 3; rows in the order of ratings.dat, permuted by random.seed(2019); 80/10/10. Seven fields: gender, age, occupation,
zip code, genres (multi-hot), release year (1919-29, then decades to 1969, then single years) and the timestamp scaled to
[0, 1]; no user or film id. Embeddings of 16. The epoch is chosen on validation, and so were the hyper-parameters below.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import tyro

from recsys_ray.config import DataConfig, LoopConfig, OptimizerConfig, PrepareConfig, SplitConfig, TrackingConfig, TrainConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import movielens
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.training.train import train

ROWS, POSITIVES, TEST_ROWS = 739_012, 575_281, 73_902
AUTOINT = {"auc": 0.8456, "logloss": 0.3797}
BATCH = 2048
EPOCHS = 6
STEPS = EPOCHS * -(-int(ROWS * 0.8) // BATCH)
IDS = (Categorical("user_id", "user", encoding="vocabulary"), Categorical("item_id", "item", encoding="vocabulary"))
FIELDS = (
    Categorical("gender", "user", "string", "vocabulary"),
    Categorical("age", "user", "int", "vocabulary"),
    Categorical("occupation", "user", "int", "vocabulary"),
    Categorical("zip_code", "user", "string", "vocabulary"),
    Categorical("genres", "item", "string", "vocabulary", multi=True),
    Categorical("year_bucket", "item", "int", "vocabulary"),
    Dense("time", "context"),
)
DCN = DLRMConfig(
    interaction="dcn",
    embedding_dim=16,
    pooling="sum",
    init_range=0.01,
    dense_layers=(64,),
    over_layers=(512, 256, 128),
    cross_layers=3,
    cross_rank=112,
)
DCN_OPTIMIZER = OptimizerConfig(
    sparse_learning_rate=0.1, dense_learning_rate=2e-3, dense_weight_decay=1e-5, decay_steps=STEPS, final_rate=0.01
)
DOT = DLRMConfig(interaction="dot", embedding_dim=16, pooling="sum", dense_layers=(256, 64), over_layers=(512, 256))
DOT_OPTIMIZER = dataclasses.replace(DCN_OPTIMIZER, sparse_learning_rate=0.2)


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    work: Path = Path("runs/published-ctr")


def protocol_table(raw: Path) -> pa.Table:
    """Returns the kept rows in the protocol's order, with a `split` column."""
    ratings = pq.read_table(raw / "interactions.parquet")
    ratings = ratings.filter(pc.not_equal(ratings["rating"], 3))
    table = ratings
    for name, key in (("users", "user_id"), ("items", "item_id")):
        other = pq.read_table(raw / f"{name}.parquet")
        rows = pc.index_in(ratings[key], value_set=other[key].combine_chunks())
        for column in other.drop_columns([key]).column_names:
            table = table.append_column(column, other[column].take(rows))
    year = table["year"].to_numpy()
    bucket = np.where(year < 1930, 0, np.where(year < 1970, (year - 1930) // 10 + 1, year - 1965))
    time = table["timestamp"].to_numpy().astype(np.float64)
    table = table.append_column("year_bucket", pa.array(bucket.astype(np.int64)))
    table = table.append_column("time", pa.array((time - time.min()) / (time.max() - time.min())))
    table = table.append_column("label", pa.array((table["rating"].to_numpy() > 3).astype(np.int8)))
    rows_of = list(range(len(table)))
    random.seed(2019)
    random.shuffle(rows_of)
    ends = int(len(table) * 0.8), int(len(table) * 0.9)
    split = np.array(["train"] * ends[0] + ["validation"] * (ends[1] - ends[0]) + ["test"] * (len(table) - ends[1]))
    return table.take(pa.array(rows_of)).append_column("split", pa.array(split))


def datasets(work: Path) -> dict[str, str]:
    """Prepares two dataset directories: the protocol's fields, and the same with user and film ids."""
    raw = movielens.fetch(work / "movielens-1m")
    table = protocol_table(raw)
    found = len(table), pc.sum(table["label"]).as_py(), pc.sum(pc.equal(table["split"], "test")).as_py()
    assert found == (ROWS, POSITIVES, TEST_ROWS), f"not the protocol's rows: {found}"
    pq.write_table(table, work / "protocol.parquet")
    made = {}
    for name, fields in (("fields", FIELDS), ("fields-and-ids", (*IDS, *FIELDS))):
        schema = work / f"{name}.json"
        schema.write_text(Schema((Label("label"), *fields)).to_json())
        out = work / f"dataset-{name}"
        split = SplitConfig(by="column", column="split")
        prepare(
            PrepareConfig(parquet=str(work / "protocol.parquet"), schema=str(schema), out=str(out), split=split, overwrite=True)
        )
        made[name] = str(out.absolute())
    return made


def run(name: str, dataset: str, model: DLRMConfig, optimizer: OptimizerConfig, seed: int, work: Path) -> dict[str, float]:
    run_dir = (work / f"{name}-{seed}").absolute()
    shutil.rmtree(run_dir, ignore_errors=True)
    config = TrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=dataset),
        model=model,
        optimizer=optimizer,
        train=LoopConfig(epochs=EPOCHS, global_batch=BATCH, patience=2, seed=seed, log_every=200),
        tracking=TrackingConfig(experiment="published-ctr"),
    )
    with launcher(config.launch) as engine:
        engine.run(train, config)
    return json.loads((run_dir / "outcome.json").read_text())


def main(arguments: Arguments) -> None:
    arguments.work.mkdir(parents=True, exist_ok=True)
    ray.init(ignore_reinit_error=True)
    made = datasets(arguments.work)
    figures: dict[str, dict[str, float]] = {"AutoInt, published": dict(AUTOINT)}
    for name, dataset, model, optimizer in (
        ("DCNv2", made["fields"], DCN, DCN_OPTIMIZER),
        ("DLRM dot", made["fields"], DOT, DOT_OPTIMIZER),
        ("DCNv2 with user and film ids", made["fields-and-ids"], DCN, DCN_OPTIMIZER),
    ):
        outcomes = [
            run(name.replace(" ", "-"), dataset, model, optimizer, seed, arguments.work) for seed in range(arguments.seeds)
        ]
        auc, loss = ([found[f"test_{metric}"] for found in outcomes] for metric in ("auc", "logloss"))
        figures[name] = {
            "auc": float(np.mean(auc)),
            "logloss": float(np.mean(loss)),
            "auc_spread": max(auc) - min(auc),
            "rows_per_second": float(np.median([found["rows_per_second"] for found in outcomes])),
        }
    print(f"\nMovieLens 1M, AutoInt's protocol, mean of {arguments.seeds} seeds, test split of {TEST_ROWS:,} rows")
    print(f"{'':<32}{'AUC':>8}{'log loss':>10}{'spread':>9}{'rows/s':>10}")
    for name, row in figures.items():
        spread, speed = row.get("auc_spread", float("nan")), row.get("rows_per_second", float("nan"))
        print(f"{name:<32}{row['auc']:>8.4f}{row['logloss']:>10.4f}{spread:>9.4f}{speed:>10,.0f}")
    print(
        json.dumps(
            {"benchmark": "published_movielens_ctr", "seeds": arguments.seeds, "rows": figures, "model": dataclasses.asdict(DCN)}
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
