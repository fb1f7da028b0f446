"""MLflow as the tracker of a run: parameters, metrics by step, plan, dataset, weights, report."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import tempfile
import time
import uuid
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_ray.config import TrainConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
RUN_ID_FILE = ".mlflow_run_id"
"""In the run directory: a run can end before its first checkpoint, which holds the id too."""
PARAMETERS_PER_CALL = 100
"""MLflow's own limit."""
TAGGED_VERSIONS = ("recsys-ray", "torch", "torchrec", "mosaicml-streaming", "mlflow")


def tracking_uri(config: TrainConfig) -> str:
    """Returns the configured URI, or that of the SQLite database beside the run directory."""
    return config.tracking.uri or f"sqlite:///{_own_database(config)}"


def _own_database(config: TrainConfig) -> Path:
    return Path(config.run_dir).parent / "mlflow.db"


def viewing_hint(config: TrainConfig) -> str:
    """Returns the command that shows the run in MLflow's user interface."""
    return f"MLflow   mlflow ui --backend-store-uri {tracking_uri(config)}"


def check_tracking(config: TrainConfig) -> None:
    """Raises ValueError where no run could be recorded: MLflow cannot open its database there, or the experiment was deleted."""
    database, name = _own_database(config), config.tracking.experiment
    if not config.tracking.uri and set("%?") & set(str(database)):
        raise ValueError(
            f"--run-dir {config.run_dir}: MLflow opens its database, {database}, by a URL, which cannot hold % and ?: choose "
            "another folder, or pass --tracking.uri or --tracking.backend none"
        )
    if deleted := _asked_of_server(config) if config.tracking.uri else _asked_of_database(database, name):
        raise _deleted_error(config, deleted)


def _asked_of_server(config: TrainConfig) -> str:
    """Returns the id of the run's experiment if it was deleted, else an empty text."""
    from mlflow.tracking import MlflowClient

    found = MlflowClient(config.tracking.uri).get_experiment_by_name(config.tracking.experiment)
    return found.experiment_id if found is not None and found.lifecycle_stage == "deleted" else ""


def _asked_of_database(database: Path, name: str) -> str:
    """Returns the same as `_asked_of_server`, in milliseconds where MLflow takes 3 s. What cannot be read is left to MLflow."""
    query = "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, [name]).fetchall()
    except sqlite3.Error:
        return ""
    return str(found[0][0]) if found and all(stage == "deleted" for _, stage in found) else ""


def _deleted_error(config: TrainConfig, experiment_id: str) -> ValueError:
    # A URI that the user gave may hold a password, and is known.
    where = "" if config.tracking.uri else f"MLFLOW_TRACKING_URI={tracking_uri(config)} "
    return ValueError(
        f"the MLflow experiment {config.tracking.experiment!r} was deleted: restore it ({where}mlflow experiments restore "
        f"--experiment-id {experiment_id}), or pass another --tracking.experiment"
    )


class MlflowTracker:
    """A Tracker that records one MLflow run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        """Records metrics of a step; MLflow takes no NaN."""
        # Not at the top: MLflow takes a second to import, which a process that only prints `viewing_hint` should not pay.
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in values.items() if value == value]
        self._client.log_batch(self.run_id, metrics=points)

    def set_tags(self, values: dict[str, str]) -> None:
        """Sets tags of the run."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, value)

    def log_text(self, text: str, name: str) -> None:
        """Stores a text as an artifact called `name`."""
        self._client.log_text(self.run_id, text, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Stores a file as an artifact, in `folder` of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, status: str) -> None:
        """Marks how the run ended."""
        self._client.set_terminated(self.run_id, status)


def open_run(config: TrainConfig, settings: dict[str, Any], run_id: str) -> MlflowTracker:
    """Continues the MLflow run `run_id`, or the one noted in the run directory; else starts a new one."""
    from mlflow.tracking import MlflowClient

    uri, run_dir = tracking_uri(config), Path(config.run_dir)
    if not config.tracking.uri and not _own_database(config).exists():
        _create_database(_own_database(config))
    client, note = MlflowClient(uri), run_dir / RUN_ID_FILE
    run_id = run_id or (note.read_text() if note.exists() else "")
    if not run_id or not _exists(client, run_id, uri):
        run_id = _create_run(client, config, settings)
        run_dir.mkdir(parents=True, exist_ok=True)
        note.write_text(run_id)
    client.update_run(run_id, status="RUNNING")
    return MlflowTracker(client, run_id)


def _create_database(database: Path) -> None:
    """Creates a SQLite database with MLflow's tables, whole or not at all; does nothing where another run is quicker.

    MLflow would create it too, but in more than fifty migrations, each of which waits for the disk: 2 s.
    """
    from mlflow.tracking import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def wait_for_no_disk(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    database.parent.mkdir(parents=True, exist_ok=True)
    partial = database.with_name(f"{database.name}.{uuid.uuid4().hex[:8]}.partial")
    with tempfile.TemporaryDirectory() as folder:
        event.listen(Engine, "connect", wait_for_no_disk)
        try:
            MlflowClient(f"sqlite:///{folder}/{database.name}")
        finally:
            event.remove(Engine, "connect", wait_for_no_disk)
        with partial.open("wb") as file:
            file.write(Path(folder, database.name).read_bytes())
            file.flush()
            os.fsync(file.fileno())
    try:
        # A link, since a rename would put it in the place of another run's.
        os.link(partial, database)
    except OSError:
        log.debug("%s exists, or its file system knows no links: MLflow sees to it", database)
    finally:
        partial.unlink()


def _exists(client: MlflowClient, run_id: str, uri: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        log.warning("MLflow run %s is not in %s: this run continues as a new one there", run_id, uri)
        return False


def _create_run(client: MlflowClient, config: TrainConfig, settings: dict[str, Any]) -> str:
    from mlflow.entities import Param

    name, run_dir = config.tracking.experiment, Path(config.run_dir)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # With SQLite alone, artifacts would go to a folder of the worker's own working directory.
        location = None if config.tracking.uri else str(run_dir.parent / "mlartifacts")
        experiment_id = client.create_experiment(name, artifact_location=location)
    elif experiment.lifecycle_stage == "deleted":
        raise _deleted_error(config, experiment.experiment_id)
    else:
        experiment_id = experiment.experiment_id
    run = client.create_run(experiment_id, run_name=run_dir.name, tags=_tags())
    parameters = [Param(key, str(value)) for key, value in settings.items()]
    for first in range(0, len(parameters), PARAMETERS_PER_CALL):
        client.log_batch(run.info.run_id, params=parameters[first : first + PARAMETERS_PER_CALL])
    return run.info.run_id


def _tags() -> dict[str, str]:
    return {"mlflow.source.git.commit": git_commit(), **{f"version.{name}": version(name) for name in TAGGED_VERSIONS}}


def git_commit() -> str:
    """Returns the commit of the code that runs; "unknown" outside a git checkout, such as a Ray job's working directory."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
