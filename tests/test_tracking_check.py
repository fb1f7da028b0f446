"""What would keep a run from being recorded is said before any work is done, in one line with the remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from recsys_ray.config import TrackingConfig, TrainConfig
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.reporting.tracking.mlflow_tracker import open_run, tracking_uri
from recsys_ray.reporting.tracking.tracker import check_tracking
from recsys_ray.training import job

DELETED = r"^the MLflow experiment 'recsys_ray' was deleted: restore it \(.*mlflow experiments restore --experiment-id \d+\)"


def config_with(run_dir: Path, uri: str = "", backend: Literal["mlflow", "none"] = "mlflow") -> TrainConfig:
    return TrainConfig(run_dir=str(run_dir), model=DLRMConfig(), tracking=TrackingConfig(backend, uri))


def no_work(*arguments: object) -> NoReturn:
    raise AssertionError("work has begun")


@pytest.mark.parametrize("uri", ["", "sqlite:///{}/other.db"], ids=["own database", "uri"])
def test_a_deleted_experiment_is_named_before_any_work(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    config = config_with(tmp_path / "first", uri.format(tmp_path))
    check_tracking(config)
    open_run(config, {}, "")
    check_tracking(config)
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name("recsys_ray")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    monkeypatch.setattr(job, "launcher", no_work)
    second = replace(config, run_dir=str(tmp_path / "second"))
    with pytest.raises(ValueError, match=DELETED):
        job.launch_training(second, no_work)
    with pytest.raises(ValueError, match=DELETED):
        open_run(second, {}, "")
    check_tracking(replace(second, tracking=replace(second.tracking, experiment="another")))
    client.restore_experiment(experiment.experiment_id)
    check_tracking(second)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["50%20 off", "really?"])
def test_a_folder_that_mlflow_cannot_write_in_is_named(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / name / "run"
    with pytest.raises(ValueError, match=rf"^--run-dir {re.escape(str(run_dir))}: .* --tracking.backend none$"):
        check_tracking(config_with(run_dir))
    check_tracking(config_with(run_dir, backend="none"))
    check_tracking(config_with(tmp_path / "x#1 [2]" / "run"))


@pytest.mark.unit
def test_a_file_that_is_no_database_of_mlflow_is_left_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    check_tracking(config_with(tmp_path / "run"))
