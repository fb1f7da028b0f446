"""MLflow, on rank 0 alone: parameters, metrics by step, plan, dataset, weights, report."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_ray.config import TrackingConfig, TrainConfig
from recsys_ray.distributed import World

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


log = logging.getLogger(__name__)
RUN_ID = ".mlflow_run_id"


def tracking_uri(config: TrackingConfig, run_dir: Path) -> str:
    return config.uri or f"sqlite:///{run_dir.parent / 'mlflow.db'}"


class Tracker:
    """One MLflow run; on every rank but 0 its methods do nothing."""

    def __init__(self, config: TrainConfig, run_dir: Path, world: World, run_id: str) -> None:
        self.run_id = run_id
        self._client: MlflowClient | None = None
        if world.rank != 0:
            return
        # Not at the top: a second that every process would pay, and rank 0 alone needs.
        from mlflow.tracking import MlflowClient

        self.uri = tracking_uri(config.tracking, run_dir)
        self._client = MlflowClient(self.uri)
        # A run can end before its first checkpoint, which would know.
        noted = run_dir / RUN_ID
        self.run_id = run_id or (noted.read_text() if noted.exists() else "")
        if not self.run_id or not self._known(self.run_id):
            self.run_id = self._create(config, run_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            noted.write_text(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")

    def _known(self, run_id: str) -> bool:
        assert self._client is not None
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow run %s is not in %s: this run goes on as a new one there", run_id, self.uri)
            return False

    def _create(self, config: TrainConfig, run_dir: Path) -> str:
        assert self._client is not None
        name = config.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            # SQLite alone would put artifacts in a folder of the worker's own working directory.
            place = None if config.tracking.uri else str(run_dir.parent / "mlartifacts")
            experiment_id = self._client.create_experiment(name, artifact_location=place)
        else:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(experiment_id, run_name=run_dir.name, tags=_tags())
        for key, value in _flat(dataclasses.asdict(config)).items():
            self._client.log_param(run.info.run_id, key, value)
        return run.info.run_id

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if self._client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            points = [Metric(name, value, now, step) for name, value in values.items() if value == value]
            self._client.log_batch(self.run_id, metrics=points)

    def tags(self, values: dict[str, str]) -> None:
        if self._client is not None:
            for name, value in values.items():
                self._client.set_tag(self.run_id, name, value)

    def text(self, text: str, name: str) -> None:
        if self._client is not None:
            self._client.log_text(self.run_id, text, name)

    def file(self, path: Path, folder: str | None = None) -> None:
        if self._client is not None:
            self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, status: str) -> None:
        if self._client is not None:
            self._client.set_terminated(self.run_id, status)


def _tags() -> dict[str, str]:
    versions = {f"version.{name}": version(name) for name in ("recsys-ray", "torch", "torchrec", "mosaicml-streaming", "mlflow")}
    return {"mlflow.source.git.commit": git_commit(), **versions}


def git_commit() -> str:
    """Of the code that runs; "unknown" where it is no git checkout (a Ray job's copy of the working directory is none)."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
