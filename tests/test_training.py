"""train(config) in gloo process groups: the same losses for any number of workers, exact resume, exact evaluation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.compat.streaming_compat import StreamingDataset
from recsys_ray.training.train import train
from tests.support.faults import train_until_step_30
from tests.support.runs import copied, dlrm_config, losses, outcome, same_weights, weights
from tests.support.workers import run_workers


@pytest.fixture(scope="module")
def two_workers(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains two epochs on two workers, row-wise."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    run_workers(train, 2, dlrm_config(dataset, run_dir, epochs=2))
    return run_dir


def test_one_and_two_workers_draw_the_same_curve(dataset: Path, two_workers: Path, tmp_path: Path) -> None:
    run_workers(train, 1, dlrm_config(dataset, tmp_path / "one", epochs=2))
    one, two = losses(tmp_path / "one"), losses(two_workers)
    assert len(one) == len(two) >= 90
    assert np.abs(one - two)[:50].max() < 1e-5
    first, second = outcome(tmp_path / "one"), outcome(two_workers)
    assert (first["world_size"], second["world_size"]) == (1, 2)
    assert first["test_auc"] == pytest.approx(second["test_auc"], abs=1e-4)
    assert one[-10:].mean() < one[:10].mean() - 0.01


def test_interrupted_run_goes_on_to_the_same_weights_bit_by_bit(
    dataset: Path, one_epoch: Path, two_workers: Path, tmp_path: Path
) -> None:
    stopped = outcome(copied(one_epoch, tmp_path / "resumed"))
    run_workers(train, 2, dlrm_config(dataset, tmp_path / "resumed", epochs=2))
    resumed = outcome(tmp_path / "resumed")
    assert resumed["tracking_run_id"] == stopped["tracking_run_id"]
    assert np.array_equal(losses(tmp_path / "resumed"), losses(two_workers))
    assert same_weights(two_workers, tmp_path / "resumed")


def test_run_stopped_within_an_epoch_goes_on_there(dataset: Path, one_epoch: Path, tmp_path: Path) -> None:
    """The resumed run is equal bit by bit on as many workers, and has the same losses on another number of them."""
    with pytest.raises(ProcessRaisedException, match="stopped"):
        run_workers(train_until_step_30, 2, dlrm_config(dataset, tmp_path / "two", every_steps=20))
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert [folder.name for folder in (tmp_path / "two" / "checkpoints").iterdir()] == ["step_20"]
    for workers, name in ((2, "two"), (1, "one")):
        run_workers(train, workers, dlrm_config(dataset, tmp_path / name, every_steps=20))
    assert np.array_equal(losses(tmp_path / "two"), losses(one_epoch))
    assert same_weights(one_epoch, tmp_path / "two")
    assert losses(tmp_path / "one") == pytest.approx(losses(one_epoch), abs=1e-5)


def test_batch_that_is_no_whole_number_of_blocks_is_refused(dataset: Path, tmp_path: Path) -> None:
    words = r"--train.global-batch 1000 is not a positive multiple of the dataset's block_rows 128: use 896 or 1024"
    with pytest.raises(ProcessRaisedException, match=words):
        run_workers(train, 1, dlrm_config(dataset, tmp_path, global_batch=1000))


def test_outcome_and_report_hold_the_figures_of_the_run(dataset: Path, two_workers: Path) -> None:
    found, page = outcome(two_workers), (two_workers / "report.html").read_text()
    best_auc = json.loads((dataset.parent / "raw" / "teacher.json").read_text())["best_auc"]
    assert 0.6 < found["test_auc"] < best_auc + 0.01
    assert found["test_ne"] == pytest.approx(found["test_logloss"] / entropy_of_labels(dataset, "test"), rel=1e-4)
    assert found["test_ne"] < 0.97 and found["test_calibration"] == pytest.approx(1, abs=0.1)
    assert found["rows_per_second"] > 100 and 0 < found["data_wait_share"] < 1
    assert found["launcher"] == "ray" and found["tracking_run_id"] and found["steps"] == len(losses(two_workers)) == 96
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img") == 6
    for figure in (f"{found['test_auc']:.4f}", f"{found['rows_per_second']:,.0f}", found["tracking_run_id"]):
        assert figure in page


def entropy_of_labels(dataset: Path, split: str) -> float:
    """Returns the log loss of predicting the positive rate of a split for each of its rows."""
    blocks = StreamingDataset(local=str(dataset / split), batch_size=1)
    rate = np.concatenate([blocks[number]["label"] for number in range(len(blocks))]).mean()
    return float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))


def test_mlflow_holds_the_run(two_workers: Path) -> None:
    import mlflow

    client = mlflow.tracking.MlflowClient(f"sqlite:///{two_workers.parent / 'mlflow.db'}")
    run = client.get_run(outcome(two_workers)["tracking_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.embedding_dim"] == "8" and run.data.params["train.epochs"] == "2"
    assert run.data.tags["dataset.fingerprint"] and run.data.tags["mlflow.source.git.commit"]
    assert run.data.metrics["test/auc"] == pytest.approx(outcome(two_workers)["test_auc"])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, len(losses(two_workers)) + 1))
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names >= {"sharding_plan.txt", "schema.json", "report.html", "outcome.json", "model"}


def test_runs_beside_each_other_share_a_database_that_is_created_whole(tmp_path: Path) -> None:
    """A run that finds no database creates one; if another run is quicker, that run's stays."""
    import mlflow

    from recsys_ray.config import TrackingConfig
    from recsys_ray.reporting.tracking.mlflow_tracker import _create_database, open_run

    settings = {str(number): number for number in range(150)}
    configs = [replace(dlrm_config(tmp_path, tmp_path / name), tracking=TrackingConfig()) for name in ("first", "second")]
    runs = [open_run(config, settings, "").run_id for config in configs]
    database = tmp_path / "mlflow.db"
    before = database.read_bytes()
    _create_database(database)
    assert database.read_bytes() == before and sorted(tmp_path.glob("mlflow*")) == [database]
    client = mlflow.tracking.MlflowClient(f"sqlite:///{database}")
    assert all(len(client.get_run(run).data.params) == len(settings) for run in runs)


def test_plain_module_on_one_process_predicts_as_the_sharded_one(dataset: Path, two_workers: Path) -> None:
    """TorchRec's unsharded module, with the exported weights, has the sharded model's log loss and AUC on the test split."""
    from recsys_ray.columns import LENGTHS
    from recsys_ray.data.blocks.layout import widened
    from recsys_ray.data.dataset.directory import DatasetDirectory
    from recsys_ray.models.evaluation.binary_metrics import binary_metrics
    from recsys_ray.models.registry import build_task
    from recsys_ray.models.task import BuildContext

    schema = DatasetDirectory.open(dataset).schema
    model = dlrm_config(dataset, two_workers, epochs=2).model
    task = build_task(model, BuildContext(schema, torch.device("cpu")))
    task.module.to_empty(device="cpu").load_state_dict(weights(two_workers))
    blocks = StreamingDataset(local=str(dataset / "test"))
    rows = [widened(blocks[number]) for number in range(len(blocks))]
    columns = {name: torch.from_numpy(np.concatenate([block[name] for block in rows])) for name in rows[0]}
    assert "m1" + LENGTHS in columns
    with torch.no_grad():
        batch = task.to_batch({**columns, ROW_WEIGHT: torch.ones(len(columns["label"]))})
        predicted = task.module.model(batch.dense, batch.sparse).squeeze(-1).sigmoid().numpy()
    found = binary_metrics(predicted, columns["label"].numpy(), np.ones(len(predicted)))
    assert found["auc"] == pytest.approx(outcome(two_workers)["test_auc"], abs=1e-6)
    assert found["logloss"] == pytest.approx(outcome(two_workers)["test_logloss"], abs=1e-6)
