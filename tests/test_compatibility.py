"""What version 0.1 wrote still opens: a dataset directory, a checkpoint, a finished run, and its index."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from recsys_ray.config import TrackingConfig, TrainConfig
from recsys_ray.config.serialization import from_json
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import model_config
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.serving.index import open_index
from tests.support.runs import log_of, logged_train, newest_progress, outcome
from tests.support.workers import run_workers

ARCHIVE = Path(__file__).parent / "data" / "version_0_1.tar.gz"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive, whose config.json files name it as their root."""
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    for file in root.glob("v01/*/config.json"):
        file.write_text(file.read_text().replace("ROOT", str(root / "v01")))
    return root / "v01"


def old_config(run_dir: Path) -> TrainConfig:
    return from_json((run_dir / "config.json").read_text(), model_config)


def test_config_without_a_model_name_is_that_of_its_model(old: Path) -> None:
    assert old_config(old / "dlrm").model == DLRMConfig(interaction="dcn", embedding_dim=8, dense_layers=(8,), over_layers=(8,))
    two_tower = old_config(old / "two_tower")
    assert isinstance(two_tower.model, TwoTowerConfig) and two_tower.model.query_layers == (8,)
    assert two_tower.tracking.backend == "mlflow" and two_tower.optimizer.sparse == "adagrad"


def test_dataset_directory_has_all_its_rows(old: Path) -> None:
    dataset = DatasetDirectory.open(old / "clicks")
    rows = {split: sum(len(columns["label"]) for columns in read_split(dataset, split)) for split in dataset.summary["rows"]}
    assert rows == dataset.summary["rows"] and sum(rows.values()) == 3000


def test_checkpoint_is_resumed(old: Path) -> None:
    run_dir = old / "dlrm"
    before, config = newest_progress(run_dir), old_config(run_dir)
    loop = dataclasses.replace(config.train, max_steps=20)
    run_workers(logged_train, 1, dataclasses.replace(config, train=loop, tracking=TrackingConfig(backend="none")))
    after = newest_progress(run_dir)
    assert before["step"] == 12 and after["step"] == 20 and outcome(run_dir)["steps"] == 20
    assert "resuming after step 12, 1 epochs and 8 row blocks, with 1 workers" in log_of(run_dir)
    assert after["training"][: len(before["training"])] == before["training"]
    assert after["tracking_run_id"] == before["mlflow_run_id"] == outcome(run_dir)["tracking_run_id"]


def test_index_is_searched_with_its_model(old: Path) -> None:
    retriever = load_retriever(old / "two_tower")
    index = open_index(str(old / "two_tower" / "index"), retriever.version)
    queries = retriever.embed_queries(pa.table({"user_id": [7], "country": ["NO"], "recent_items": [[12, 5]]}))
    (found,) = index.search(queries, k=10, exclude=[[12, 5]])
    scores = found["score"].to_pylist()
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    assert not {12, 5} & set(found["item_id"].to_pylist())
    items = pa.table({name: found[name] for name in ("item_id", "kind")})
    assert scores == pytest.approx((retriever.embed_candidates(items) @ queries[0]).tolist(), abs=1e-5)
