"""Registration of a finished run: its bundle becomes a version of a model in MLflow's registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recsys_ray.bundle.reader import BundleFolder, open_bundle
from recsys_ray.command_line import JobError
from recsys_ray.config import TrainConfig
from recsys_ray.config.serialization import flatten, from_json, to_values
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.example_rows import example_rows
from recsys_ray.models.registry import build_task, model_config, model_name
from recsys_ray.models.task import BuildContext
from recsys_ray.reporting.outcome import read_outcome
from recsys_ray.reporting.registry.address import RegistryAddress, connected
from recsys_ray.reporting.registry.model_log import PreparedDataset, ServedBundle, log_and_register
from recsys_ray.reporting.registry.names import CANDIDATE_ALIAS, check_registered_name
from recsys_ray.reporting.registry.versions import is_newest, move_alias, version_of
from recsys_ray.reporting.tracking import mlflow_tracker
from recsys_ray.schema import Schema


@contextmanager
def registry_of(config: TrainConfig) -> Iterator[None]:
    """Lets MLflow use the run's tracking server and registry. Raises ValueError for a name that this registry refuses."""
    address = RegistryAddress(mlflow_tracker.tracking_uri(config), config.tracking.registry_uri)
    with connected(address) as registry_uri:
        check_registered_name(config.register, registry_uri)
        yield


def check_registration(config: TrainConfig) -> None:
    """Raises ValueError where a run with these settings could not be registered at its end."""
    if config.tracking.backend != "mlflow":
        raise ValueError(f"--register {config.register} needs --tracking.backend mlflow, and it is {config.tracking.backend}")
    with registry_of(config):
        pass


def register_run(config: TrainConfig) -> str:
    """Registers the bundle of a finished run as `config.register`, and returns a line about it.

    The same bundle of the same run is not registered twice. Raises FileNotFoundError where the run has no bundle yet, and
    JobError where MLflow fails: the run is whole, and can be registered later.
    """
    bundle = open_bundle(config.run_dir)
    try:
        with registry_of(config):
            return _register_once(bundle, config.register, tracked_run(config))
    except JobError as error:
        raise JobError(
            f"the run in {config.run_dir} is whole, but it is not registered as {config.register}: {error}. "
            "Running the job again registers it"
        ) from error


def _register_once(bundle: BundleFolder, name: str, run_id: str) -> str:
    version = bundle.manifest.version
    registered = version_of(name, run_id, version)
    if registered is None:
        registered = log_and_register(described(bundle), name, run_id)
        return f"{name} version {registered.number}, alias {CANDIDATE_ALIAS} (bundle {version})"
    if is_newest(registered):  # the call that registered it may have been killed before it set the alias
        move_alias(CANDIDATE_ALIAS, registered)
    return f"{name} version {registered.number} is this bundle already ({version}): nothing to do"


def tracked_run(config: TrainConfig) -> str:
    """Returns the id of the run in MLflow; a run that was trained without MLflow, or with another server, gets one."""
    settings = flatten(to_values(config, model_name(config.model)))
    tracker = mlflow_tracker.open_run(config, settings, read_outcome(config.run_dir)["tracking_run_id"])
    tracker.end("FINISHED")
    return tracker.run_id


def described(bundle: BundleFolder) -> ServedBundle:
    """Returns the bundle with its inputs, outputs, example and dataset. Raises ValueError for a bundle of version 0.1."""
    if not (bundle.folder / "config.json").exists():
        raise ValueError(f"{bundle.folder} was written by version 0.1: run the run's training job again, which exports it anew")
    schema = Schema.load(bundle.folder / "schema.json")
    config = model_config(json.loads((bundle.folder / "config.json").read_text()))
    towers = build_task(config, BuildContext(schema, torch.device("cpu"))).towers
    inputs = tuple(column for column in schema.features if towers is None or column.side != "item")
    return ServedBundle(
        bundle,
        inputs,
        output_shape=() if towers is None else (towers.dim,),
        example=example_rows(inputs, load_vocabularies(bundle.folder, schema)),
        dataset=prepared_dataset(bundle, schema),
    )


def prepared_dataset(bundle: BundleFolder, schema: Schema) -> PreparedDataset:
    """Returns what the bundle was trained on, with the rows of each split where the dataset directory is still the same."""
    path, fingerprint = (bundle.manifest.dataset.get(name, "unknown") for name in ("path", "fingerprint"))
    try:
        summary = DatasetDirectory.open(path).summary
    except (OSError, ValueError):
        summary = {}
    return PreparedDataset(path, fingerprint, schema, summary["rows"] if summary.get("fingerprint") == fingerprint else {})


def config_of_run(run_dir: Path, name: str, *, tracking_uri: str, registry_uri: str) -> TrainConfig:
    """Returns the configuration of a finished run, to be registered under `name`, wherever its directory is now.

    An empty `tracking_uri` is the run's own. Raises FileNotFoundError where `run_dir` is no run.
    """
    file = run_dir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{run_dir} is not a run directory (no config.json): name that of a jobs/train_*.py")
    config = from_json(file.read_text(), model_config)
    tracking = dataclasses.replace(
        config.tracking, uri=tracking_uri or config.tracking.uri, registry_uri=registry_uri or config.tracking.registry_uri
    )
    return dataclasses.replace(config, run_dir=str(run_dir), register=name, tracking=tracking)
