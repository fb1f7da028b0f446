"""Resume with other workers, another sharding plan or other settings; refusal to resume another run; warm starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.config import PrepareConfig, ShardingConfig, TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.launch.stopping import STOP_FILE
from recsys_ray.training.train import train
from tests.support.audit import ROWS, assert_every_row_once_an_epoch, audited_train, numbered_rows, rows_by_step
from tests.support.faults import train_and_damage_last, train_until_validation
from tests.support.runs import copied, dlrm_config, log_of, logged_train, losses, newest_progress, outcome, same_weights, weights
from tests.support.workers import run_workers

WIDE = 256  # TorchRec splits no columns below 128


@pytest.fixture(scope="module")
def audited(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_rows(tmp_path_factory.mktemp("audited"))


def test_every_row_of_every_epoch_once_when_workers_go_and_come(audited: Path, tmp_path: Path) -> None:
    """Two epochs of 24 steps run on 2, 1, 3 and 2 workers, stopped by request. Three workers cannot share 8 blocks evenly."""
    whole, resized = tmp_path / "whole", tmp_path / "resized"
    run_workers(audited_train, 2, dlrm_config(audited, whole, epochs=2))
    for workers, stop_after in ((2, 7), (1, 15), (3, 30), (2, 0)):
        run_workers(audited_train, workers, dlrm_config(audited, resized, epochs=2), stop_after)
        (resized / STOP_FILE).unlink(missing_ok=True)
    steps = outcome(resized)["steps"]
    assert steps == outcome(whole)["steps"] == 48
    expected, found = rows_by_step(whole, steps), rows_by_step(resized, steps)
    assert all(np.array_equal(left, right) for left, right in zip(expected, found, strict=True))
    assert_every_row_once_an_epoch(found, 1024)
    assert np.abs(losses(whole) - losses(resized)).max() < 1e-4
    assert "resuming after step 8, 0 epochs and 64 row blocks, with 1 workers" in (resized / "log-0").read_text()
    assert "each reads 3, and 1 of the 9 is padding that counts nothing" in (resized / "log-0").read_text()


def test_batch_and_rate_may_change_within_an_epoch(audited: Path, tmp_path: Path) -> None:
    """The position is counted in rows, so a resume with half the batch trains every row once. Changes are logged and tagged."""
    run_dir = tmp_path / "run"
    run_workers(audited_train, 2, dlrm_config(audited, run_dir, max_steps=9))
    changed = dlrm_config(audited, run_dir, global_batch=512)
    changed = dataclasses.replace(changed, optimizer=dataclasses.replace(changed.optimizer, dense_learning_rate=5e-4))
    run_workers(audited_train, 2, changed)
    steps = outcome(run_dir)["steps"]
    assert steps == 9 + -(-(ROWS - 9 * 1024) // 512)
    assert np.array_equal(np.sort(np.concatenate(rows_by_step(run_dir, steps))), np.arange(ROWS))
    for change in ("optimizer.dense_learning_rate 0.001 -> 0.0005", "train.global_batch 1024 -> 512"):
        assert f"changed since the checkpoint: {change}" in log_of(run_dir)
    import mlflow

    run = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(outcome(run_dir)["tracking_run_id"])
    assert "train.global_batch 1024 -> 512" in run.data.tags["changed.after_step_9"]


@pytest.fixture(scope="module")
def wide(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains ten steps on two workers, row-wise."""
    run_dir = tmp_path_factory.mktemp("wide") / "run"
    run_workers(train, 2, wide_config(dataset, run_dir, "row_wise"))
    return run_dir


def wide_config(dataset: Path, run_dir: Path, kind: str, steps: int = 10) -> TrainConfig:
    wanted = dlrm_config(dataset, run_dir, max_steps=steps)
    model = dataclasses.replace(wanted.model, embedding_dim=WIDE, interaction="dot")
    return dataclasses.replace(wanted, model=model, sharding=ShardingConfig(types=(kind,)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wide_resumed(dataset: Path, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains four more steps under the same plan."""
    run_dir = copied(wide, tmp_path_factory.mktemp("resumed") / "run")
    run_workers(train, 2, wide_config(dataset, run_dir, "row_wise", steps=14))
    return run_dir


@pytest.mark.parametrize(("workers", "kind"), [(1, "table_wise"), (2, "table_wise"), (2, "column_wise")])
def test_row_wise_checkpoint_under_another_plan(
    dataset: Path, wide: Path, wide_resumed: Path, tmp_path: Path, workers: int, kind: str
) -> None:
    """The restored model predicts the same, and trains on as the row-wise one does, up to the order of sums."""
    run_dir = copied(wide, tmp_path / "run")
    run_workers(train, workers, wide_config(dataset, run_dir, kind))  # nothing left to train: restore, evaluate, export
    assert outcome(run_dir)["test_logloss"] == pytest.approx(outcome(wide)["test_logloss"], abs=1e-6)
    assert same_weights(wide, run_dir)
    run_workers(logged_train, workers, wide_config(dataset, run_dir, kind, steps=14))
    assert len(losses(run_dir)) == 14 and losses(run_dir)[10:] == pytest.approx(losses(wide_resumed)[10:], abs=1e-4)
    assert f"sharding.types ['row_wise'] -> ['{kind}']" in log_of(run_dir)


@pytest.fixture(scope="module")
def column_wise(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains ten steps on two workers, column-wise."""
    run_dir = tmp_path_factory.mktemp("column_wise") / "run"
    run_workers(train, 2, wide_config(dataset, run_dir, "column_wise"))
    return run_dir


def test_column_wise_state_goes_back_to_row_wise(dataset: Path, column_wise: Path, tmp_path: Path) -> None:
    """Row-wise training continues as column-wise training would, up to the order of sums."""
    same, changed = (copied(column_wise, tmp_path / name / "run") for name in ("same", "changed"))
    run_workers(train, 2, wide_config(dataset, same, "column_wise", steps=14))
    run_workers(train, 2, wide_config(dataset, changed, "row_wise", steps=14))
    assert len(losses(changed)) == 14 and losses(changed)[10:] == pytest.approx(losses(same)[10:], abs=1e-4)


def test_plain_module_on_the_cpu_predicts_the_same(dataset: Path, wide: Path) -> None:
    """TorchRec's unsharded modules, loaded from the checkpoint and not from the export, have the sharded model's test metrics."""
    import torch.distributed.checkpoint as dcp

    from recsys_ray.data.loading.split_reader import read_split
    from recsys_ray.models.evaluation.binary_metrics import binary_metrics
    from recsys_ray.models.registry import build_task
    from recsys_ray.models.task import BuildContext

    directory = DatasetDirectory.open(dataset)
    model = wide_config(dataset, wide, "row_wise").model
    task = build_task(model, BuildContext(directory.schema, torch.device("cpu")))
    module = task.module
    module.model.sparse_arch.to_empty(device="cpu")
    state = {"model": module.state_dict()}
    dcp.load(state, checkpoint_id=wide / "checkpoints" / "step_10", no_dist=True)
    module.load_state_dict(state["model"])
    predicted, labels = [], []
    with torch.no_grad():
        for columns in read_split(directory, "test"):
            batch = task.to_batch({**columns, ROW_WEIGHT: torch.ones(len(columns["label"]))})
            predicted.append(module.model(batch.dense, batch.sparse).squeeze(-1).sigmoid().numpy())
            labels.append(columns["label"].numpy())
    found = binary_metrics(np.concatenate(predicted), np.concatenate(labels), np.ones(sum(map(len, labels))))
    assert found["logloss"] == pytest.approx(outcome(wide)["test_logloss"], abs=1e-6)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("model", r"model.embedding_dim 8 -> 16"),
        ("dataset", r"schema\.\w+\.\w+ .* -> .*dataset.fingerprint"),
        ("order", r"order.train.seed 0 -> 7"),
    ],
)
def test_another_run_is_refused_naming_the_difference(
    dataset: Path, audited: Path, one_epoch: Path, tmp_path: Path, part: str, words: str
) -> None:
    wanted = dlrm_config(dataset, copied(one_epoch, tmp_path / "run"))
    match part:
        case "model":
            other = dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, embedding_dim=16))
        case "dataset":
            other = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, path=str(audited)))
        case _:
            other = dataclasses.replace(wanted, train=dataclasses.replace(wanted.train, seed=7))
    refusal = rf"holds another run, which cannot be resumed with these settings: .*{words}.*--init-from"
    with pytest.raises(ProcessRaisedException, match=refusal):
        run_workers(train, 1, other)


def prepared_day(folder: Path, name: str, values: list[str]) -> Path:
    draw = np.random.default_rng(len(name))
    rows = 4_000
    city = draw.choice(values, rows)
    label = (draw.random(rows) < np.where(city < "m", 0.8, 0.2)).astype(np.int64)
    pq.write_table(pa.table({"label": label, "city": city, "price": draw.random(rows)}), folder / f"{name}.parquet")
    columns = [{"kind": "label", "name": "label"}, {"kind": "dense", "name": "price"}]
    columns += [{"kind": "categorical", "name": "city", "side": "user", "encoding": "vocabulary", "dtype": "string"}]
    (folder / "schema.json").write_text(json.dumps({"columns": columns}))
    prepare(
        PrepareConfig(
            parquet=str(folder / f"{name}.parquet"), out=str(folder / name), block_rows=128, schema=str(folder / "schema.json")
        )
    )
    return folder / name


def test_new_run_starts_from_the_rows_that_it_knows_by_value(ray_session: None, tmp_path: Path) -> None:
    """The second day has another order of values, one new city and one city less; two workers, row-wise."""
    monday = prepared_day(tmp_path, "monday", ["bergen", "oslo", "paris", "rome"])
    tuesday = prepared_day(tmp_path, "tuesday", ["zagreb", "rome", "bergen", "oslo"])
    run_workers(train, 2, dlrm_config(monday, tmp_path / "first", global_batch=256))
    wanted = dlrm_config(tuesday, tmp_path / "second", global_batch=256, epochs=0)
    run_workers(logged_train, 2, dataclasses.replace(wanted, init_from=str(tmp_path / "first")))
    old, new = weights(tmp_path / "first"), weights(tmp_path / "second")
    (table,) = [name for name in old if "city_table" in name]
    values = {day: load_vocabularies(day, DatasetDirectory.open(day).schema)["city"].to_pylist() for day in (monday, tuesday)}
    for value in ("bergen", "oslo", "rome"):
        before, after = values[monday].index(value) + 1, values[tuesday].index(value) + 1
        assert torch.equal(old[table][before], new[table][after]), value
    fresh = new[table][values[tuesday].index("zagreb") + 1]
    assert not any(torch.equal(fresh, row) for row in old[table])
    assert all(torch.equal(old[name], new[name]) for name in old if name != table)
    assert f"{table}: 4 of 5 rows, 1 new; 1 of the old not here" in log_of(tmp_path / "second")
    with pytest.raises(ProcessRaisedException, match=r"--init-from .*/nowhere has no model bundle"):
        run_workers(train, 1, dataclasses.replace(wanted, run_dir=str(tmp_path / "third"), init_from=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("flags", [{"epochs": 2, "patience": 1, "global_batch": 4096}, {"max_steps": 20, "every_steps": 10}])
def test_epoch_is_validated_once_also_when_the_run_ended_there(dataset: Path, tmp_path: Path, flags: dict[str, int]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_workers(train, 1, dlrm_config(dataset, whole, **flags))
    with pytest.raises(ProcessRaisedException, match=r"killed"):
        run_workers(train_until_validation, 1, dlrm_config(dataset, killed, **flags))
    run_workers(train, 1, dlrm_config(dataset, killed, **flags))
    expected, found = newest_progress(whole), newest_progress(killed)
    assert expected["scores"] == found["scores"] and expected["validation"] == found["validation"]
    assert len(found["scores"]) == len({step for step, _ in found["scores"]}) > 0
    assert outcome(whole)["best_checkpoint"] == outcome(killed)["best_checkpoint"]
    assert same_weights(whole, killed)


def test_column_parts_go_to_workers_that_have_no_part_of_a_table(dataset: Path, column_wise: Path, tmp_path: Path) -> None:
    """Each worker restores the tables that it has, without a collective that would wait for the others."""
    run_dir = copied(column_wise, tmp_path / "run")
    run_workers(train, 2, wide_config(dataset, run_dir, "table_wise", steps=12))
    assert len(losses(run_dir)) == 12


def test_damaged_best_is_not_what_the_run_ends_with(dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_workers(train_and_damage_last, 1, dlrm_config(dataset, run_dir, epochs=2))
    ((first, _), (last, _)) = newest_progress(run_dir)["scores"]
    assert outcome(run_dir)["best_checkpoint"] == f"step_{first}"
    assert f"step_{last} is damaged (__0_0.distcp does not fit its checksum): trying the next one" in log_of(run_dir)
