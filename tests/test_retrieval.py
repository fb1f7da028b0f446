"""Two Tower from Parquet to recommended titles: prepared, trained on two workers, resumed, indexed, searched."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from recsys_ray.columns import FREQUENCY
from recsys_ray.config import (
    CheckpointConfig,
    DataConfig,
    LoopConfig,
    OptimizerConfig,
    PrepareConfig,
    ShardingConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
)
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, rank_catalogue
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.schema import Dense, Schema
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.index import open_index
from recsys_ray.serving.index.build import build_index
from recsys_ray.serving.index.item_vectors import item_vectors
from recsys_ray.serving.show import recommendations
from recsys_ray.training.train import train
from tests.support.faults import train_until_step_30
from tests.support.runs import losses, outcome, same_weights
from tests.support.workers import mlflow_uri, run_workers

USERS, ITEMS, CHOICES, LACKING, EPOCHS = 700, 150, 12, 4, 4


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes raw tables, of which the item table lacks the last few items that users have chosen."""
    folder = choices.generate_choices(tmp_path_factory.mktemp("choices") / "raw", USERS, ITEMS, CHOICES, skew=0.0)
    items = pq.read_table(folder / "items.parquet").append_column("size", pa.array(np.arange(ITEMS) % 7 + 0.5))
    pq.write_table(items.slice(0, ITEMS - LACKING), folder / "items.parquet")
    (folder / "schema.json").write_text(
        Schema((*choices.CHOICES_SCHEMA.columns, Dense("size", "item", scale="standard"))).to_json()
    )
    return folder


def preparation(raw: Path, out: Path, **settings: object) -> PrepareConfig:
    tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
    config = PrepareConfig("ray", *tables, out=str(out), block_rows=64, split=SplitConfig(by="leave_one_out"))
    return dataclasses.replace(config, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(ray_session: None, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(preparation(raw, tmp_path_factory.mktemp("prepared") / "dataset")).root


def config(dataset: Path, run_dir: Path, epochs: int = 2, **model: object) -> TrainConfig:
    settings = {
        "embedding_dim": 16, "pooling": "attention", "pooled_values": 10, "query_layers": (32,), "candidate_layers": (),
        "metrics_at": (10, 1000), "group_by": "country", "ials": True, "dropout": 0.1,
    }  # fmt: skip
    return TrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=str(dataset)),
        model=TwoTowerConfig(**{**settings, **model}),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.2),
        train=LoopConfig(epochs=epochs, global_batch=256, log_every=1, patience=0),
        sharding=ShardingConfig(types=("row_wise",)),
        tracking=TrackingConfig(uri=mlflow_uri(run_dir.parent)),
    )


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains on two workers, with row-wise tables and with uniform and hard negatives."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    run_workers(train, 2, config(dataset, run_dir, EPOCHS, uniform_negatives=32, hard_negatives=16))
    return run_dir


def split_table(dataset: Path, split: str) -> pa.Table:
    names = ("user_id", "item_id", "timestamp")
    blocks = list(read_split(DatasetDirectory.open(dataset), split))
    return pa.table({name: torch.cat([block[name] for block in blocks]).numpy() for name in names})


def test_leave_one_out_takes_the_latest_of_every_user(dataset: Path) -> None:
    for split, time in (("test", CHOICES - 1), ("validation", CHOICES - 2)):
        rows = split_table(dataset, split)
        assert sorted(rows["user_id"].to_pylist()) == list(range(1, USERS + 1))
        assert set(rows["timestamp"].to_pylist()) == {time}
    assert set(Counter(split_table(dataset, "train")["user_id"].to_pylist()).values()) == {CHOICES - 2}


def test_catalogue_is_the_item_table_with_how_often_training_chose_each(
    ray_session: None, raw: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Items that the table lacks are named; without an item table the catalogue is the items of the interactions."""
    catalogue = load_catalogue(DatasetDirectory.open(dataset))
    assert catalogue.column_names == ["item_id", "kind", "title", "size", FREQUENCY]
    assert catalogue["item_id"].to_pylist() == list(range(ITEMS - LACKING))
    trained = pq.read_table(raw / "interactions.parquet").filter(pc.field("timestamp") < CHOICES - 2)
    counts = Counter(trained["item_id"].to_pylist())
    assert catalogue[FREQUENCY].to_pylist() == [counts[item] for item in range(ITEMS - LACKING)]
    capsys.readouterr()
    prepare(preparation(raw, tmp_path / "again"))
    some = sorted(range(ITEMS - LACKING, ITEMS), key=lambda item: (-counts[item], item))
    told = f"{LACKING} items of the interactions are not in {raw}/items.parquet (item_id {', '.join(map(str, some))}): they are "
    assert told in capsys.readouterr().out

    schema = choices.CHOICES_SCHEMA.columns
    (tmp_path / "schema.json").write_text(Schema(tuple(one for one in schema if one.name not in ("kind", "country"))).to_json())
    alone = preparation(raw, tmp_path / "alone", users="", items="", schema=str(tmp_path / "schema.json"))
    found = load_catalogue(prepare(alone))
    assert dict(zip(found["item_id"].to_pylist(), found[FREQUENCY].to_pylist(), strict=True)) == {
        i: counts[i] for i in range(ITEMS)
    }


def test_item_table_with_an_item_twice_another_key_or_a_column_less_is_refused(
    ray_session: None, raw: Path, tmp_path: Path
) -> None:
    items = pq.read_table(raw / "items.parquet")
    pq.write_table(pa.concat_tables([items, items.slice(5, 1)]), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"items\.parquet: item_id 5 is there 2 times: wants one row for each item_id"):
        prepare(preparation(raw, tmp_path / "out", items=str(tmp_path / "items.parquet")))
    renamed = pq.read_table(raw / "interactions.parquet").append_column(
        "sku", pq.read_table(raw / "interactions.parquet")["item_id"]
    )
    pq.write_table(renamed, tmp_path / "interactions.parquet")
    pq.write_table(items.rename_columns(["sku", "kind", "title", "size"]), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"joined on --item-key 'sku', but the schema's item key is 'item_id'"):
        prepare(preparation(raw, tmp_path / "out", parquet=str(tmp_path / "interactions.parquet"),
                            items=str(tmp_path / "items.parquet"), item_key="sku", schema=str(raw / "schema.json")))  # fmt: skip
    pq.write_table(items.drop_columns(["kind"]), tmp_path / "items.parquet")
    kinds = items["kind"].take(pa.array(pq.read_table(raw / "interactions.parquet")["item_id"].to_numpy() % (ITEMS - LACKING)))
    pq.write_table(pq.read_table(raw / "interactions.parquet").append_column("kind", kinds), tmp_path / "interactions.parquet")
    with pytest.raises(ValueError, match=r"column 'kind' is on side item but not in .*items\.parquet"):
        prepare(preparation(raw, tmp_path / "out", parquet=str(tmp_path / "interactions.parquet"),
                            items=str(tmp_path / "items.parquet"), schema=str(raw / "schema.json")))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_metrics_beside_baselines_and_by_group(run: Path) -> None:
    found = outcome(run)
    rows = {row["name"]: row["metrics"] for row in found["comparison"]}
    assert list(rows) == ["Two Tower", "Two Tower, country north", "Two Tower, country south", "popularity", "iALS"]
    groups = [rows["Two Tower, country north"], rows["Two Tower, country south"]]
    assert sum(group["users"] for group in groups) == rows["Two Tower"]["users"] == USERS
    weighed = sum(group["users"] * group["recall_at_10"] for group in groups) / USERS
    assert weighed == pytest.approx(rows["Two Tower"]["recall_at_10"]) == pytest.approx(found["test_recall_at_10"])
    lacking = np.mean([item >= ITEMS - LACKING for item in _test_items(run)])
    for name in ("Two Tower", "popularity", "iALS"):
        assert rows[name]["recall_at_1000"] == pytest.approx(1 - lacking), "k beyond the catalogue finds all that is in it"
    assert found["test_coverage_at_1000"] == 1
    assert found["test_recall_at_10"] > 1.3 * 10 / ITEMS, "better than chance"
    page = (run / "report.html").read_text()
    assert "recall@10 on test, compared" in page and "country south" in page


def _test_items(run: Path) -> list[int]:
    dataset = json.loads((run / "config.json").read_text())["data"]["path"]
    vocabulary = pq.read_table(Path(dataset) / "vocabularies" / "item_id.parquet")["value"].to_pylist()
    return [vocabulary[row - 1] for row in split_table(Path(dataset), "test")["item_id"].to_pylist()]


def test_one_worker_draws_the_curve_of_two(dataset: Path, tmp_path: Path) -> None:
    """In-batch negatives are those of the whole global batch, for any number of workers.

    The optimizer is SGD: Adagrad's first step has full length even where the gradient is only rounding.
    """
    sgd = OptimizerConfig(sparse="sgd", sparse_learning_rate=20.0)
    for workers, name in ((2, "two"), (1, "one")):
        run_workers(train, workers, dataclasses.replace(config(dataset, tmp_path / name, epochs=1, dropout=0.0), optimizer=sgd))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert np.abs(one - two)[:20].max() < 1e-5 and one[-5:].mean() < one[:5].mean() - 0.1
    assert outcome(tmp_path / "one")["test_mrr"] == pytest.approx(outcome(tmp_path / "two")["test_mrr"], abs=1e-3)


def test_stopped_run_goes_on_to_the_same_weights(dataset: Path, run: Path, tmp_path: Path) -> None:
    """Epochs have 28 steps; the run stops at step 30, with uniform negatives and dropout, and resumes within the epoch."""
    wanted = config(dataset, tmp_path / "stopped", EPOCHS, uniform_negatives=32, hard_negatives=16)
    wanted = dataclasses.replace(wanted, checkpoint=CheckpointConfig(every_steps=29))
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="stopped"):
        run_workers(train_until_step_30, 2, wanted)
    assert (tmp_path / "stopped" / "checkpoints" / "step_29").exists()
    run_workers(train, 2, wanted)
    assert same_weights(run, tmp_path / "stopped")


def test_retriever_ranks_as_the_sharded_model_did(dataset: Path, raw: Path, run: Path) -> None:
    """From raw columns, in one process, the retriever has the recall of the outcome."""
    retriever = load_retriever(run)
    rows = pq.read_table(raw / "interactions.parquet")
    users, items = (pq.read_table(raw / f"{name}.parquet") for name in ("users", "items"))
    test = rows.filter(pc.field("timestamp") == CHOICES - 1).sort_by("user_id")
    queries = retriever.embed_queries(test.append_column("country", users["country"]))
    scores = torch.from_numpy(queries @ retriever.embed_candidates(items).T)
    earlier = rows.filter((pc.field("timestamp") < CHOICES - 1) & (pc.field("item_id") < ITEMS - LACKING))
    seen = Pairs.of(*(torch.tensor(earlier[name].to_numpy()) for name in ("user_id", "item_id")))
    chosen = torch.tensor(test["item_id"].to_numpy())
    there = chosen < ITEMS - LACKING
    relevant = Pairs.of(torch.arange(USERS)[there], chosen[there])
    ranked = rank_catalogue(
        lambda first, stop: scores[first:stop].clone(),
        relevant=relevant,
        missing=(~there).long(),
        seen=seen,
        num_items=ITEMS - LACKING,
        metrics_at=(10,),
    )
    assert float(ranked.metrics["recall_at_10"].mean()) == pytest.approx(outcome(run)["test_recall_at_10"], abs=2 / USERS)


def test_index_of_a_run_finds_what_its_vectors_say(ray_session: None, run: Path, raw: Path, tmp_path: Path) -> None:
    told = f"{ITEMS - LACKING} items of 16 numbers, searched exactly; recall@100 1.0000 against exact search (200 queries)"
    places = [str(tmp_path / "index"), f"faiss:{tmp_path / 'mapped'}"]
    assert [build_index(run, uri) for uri in places] == [told, told]
    retriever, items = load_retriever(run), pq.read_table(raw / "items.parquet")
    with pytest.raises(ValueError, match="wants databricks-ai-search: pip install"):
        build_index(run, "databricks:search/main.recsys.items")
    stranger = pa.table({"user_id": [10**6], "country": ["atlantis"], "recent_items": pa.array([[]], pa.list_(pa.int64()))})
    query = retriever.embed_queries(stranger)
    assert np.isfinite(query).all(), "a user without history is answered"
    kept = items.filter(pc.field("kind") != "kind 1")
    order = np.argsort(-(query @ retriever.embed_candidates(kept).T)[0])[:5]
    for uri in places:
        (found,) = open_index(uri, retriever.version).search(query, 5, where="kind != 'kind 1'")
        assert found["item_id"].to_pylist() == kept["item_id"].take(pa.array(order)).to_pylist()
    (page,) = recommendations(run, str(tmp_path / "index"), 1, "title")
    liked, recommended = (part.split("\n  ")[1:] for part in page.split("and is recommended"))
    assert liked and len(recommended) == 10 and all("item " in line for line in [*liked, *recommended])
    assert not {line.strip() for line in liked} & {line.split("  ", 1)[1].strip() for line in recommended}


def test_items_are_read_below_a_name_that_looks_like_a_url(ray_session: None, run: Path, dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "x?1#2 [3]"))
    _, batches = item_vectors(run, DatasetDirectory.open(folder), 16)
    assert sum(batch.num_rows for batch in batches) == ITEMS - LACKING


def test_runs_that_cannot_be_are_refused(dataset: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"--model\.group-by 'kind' is not a single-valued"):
        run_workers(train, 1, config(dataset, tmp_path / "run", group_by="kind"))
    with pytest.raises(FileNotFoundError, match=r"has no model bundle"):
        load_retriever(tmp_path)
    with pytest.raises(ValueError, match="holds a two_tower, which retrieves: a ranking model is needed here"):
        load_ranker(run)
