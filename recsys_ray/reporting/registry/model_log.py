"""A bundle logged as an MLflow model and registered: signature, example, requirements, dataset, alias `candidate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.pyfunc
import pyarrow as pa
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from recsys_ray.bundle.reader import BundleFolder
from recsys_ray.reporting.registry.names import CANDIDATE_ALIAS
from recsys_ray.reporting.registry.signature import as_example, column_specs, model_signature
from recsys_ray.reporting.registry.versions import BUNDLE_VERSION, RegisteredVersion, move_alias
from recsys_ray.schema import Column, Schema

MODEL_CODE = Path(__file__).parents[2] / "serving" / "pyfunc_model.py"
"""The file that MLflow copies and runs to load the model: a path, because a lower layer does not import serving."""
ALSO_PINNED = ("mlflow", "pandas", "fbgemm-gpu", "fbgemm-gpu-cpu")
"""Packages that loading and serving need beside those in the manifest; of fbgemm a machine has one of two."""
DATASET_CONTEXT = "mlflow.data.context"
"""The tag by which MLflow knows what a run used a dataset for."""


@dataclass(frozen=True)
class PreparedDataset:
    """The dataset directory that a model was trained on."""

    path: str
    fingerprint: str
    schema: Schema
    rows: dict[str, int]
    """Split -> rows; empty where the directory is gone or was prepared again."""


@dataclass(frozen=True)
class ServedBundle:
    """A bundle with what MLflow is told of it."""

    bundle: BundleFolder
    inputs: tuple[Column, ...]
    """The raw columns that it scores or embeds."""
    output_shape: tuple[int, ...]
    """The shape of what it returns for a row: () for a score, (dim,) for a vector."""
    example: pa.Table
    dataset: PreparedDataset


def log_and_register(served: ServedBundle, name: str, run_id: str) -> RegisteredVersion:
    """Logs the bundle to a run and registers it as the next version of `name`, with the alias `candidate`.

    MLflow copies the bundle into its temporary folder, loads it once, and scores the example.
    """
    client, manifest = MlflowClient(), served.bundle.manifest
    log_dataset(served.dataset, run_id)
    # Left to itself, MLflow creates it in the process's own experiment rather than in that of the run.
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, manifest.model, source_run_id=run_id, model_type=manifest.model
    )
    logged = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        model_id=model.model_id,
        run_id=run_id,
        python_model=str(MODEL_CODE),
        artifacts={"bundle": str(served.bundle.folder)},
        signature=model_signature(served.inputs, served.output_shape),
        input_example=as_example(served.example),
        pip_requirements=pinned_requirements(manifest.packages),
        registered_model_name=name,
        tags=_tags(served),
    )
    number = str(logged.registered_model_version)
    text = f"{manifest.model}, step {manifest.step} of run {run_id}, trained on {served.dataset.path}"
    client.update_model_version(name, number, description=text)
    registered = RegisteredVersion(name, number, run_id, manifest.version, text)
    move_alias(CANDIDATE_ALIAS, registered)
    return registered


def _tags(served: ServedBundle) -> dict[str, str]:
    manifest = served.bundle.manifest
    metrics = {f"metric.{name}": f"{value:.6g}" for name, value in manifest.metrics.items()}
    dataset = {f"dataset.{name}": value for name, value in manifest.dataset.items()}
    return {BUNDLE_VERSION: manifest.version, "recsys_ray.model": manifest.model, "step": str(manifest.step)} | dataset | metrics


def log_dataset(dataset: PreparedDataset, run_id: str) -> None:
    """Records with a run that it was trained on this dataset: path, fingerprint, columns and rows. Again adds nothing."""
    entry = Dataset(
        name=Path(dataset.path).name,
        digest=dataset.fingerprint,
        source_type="local",
        source=json.dumps({"uri": dataset.path}),
        schema=json.dumps({"mlflow_colspec": column_specs(dataset.schema.columns).to_dict()}),
        profile=json.dumps({"num_rows": sum(dataset.rows.values()), **dataset.rows}) if dataset.rows else None,
    )
    MlflowClient().log_inputs(run_id, datasets=[DatasetInput(entry, [InputTag(DATASET_CONTEXT, "training")])])


def pinned_requirements(packages: dict[str, str]) -> list[str]:
    """Returns pip requirements: the versions that wrote the bundle, and those of what else serves it, as installed here.

    The local part of a version is left out: an index has torch 2.13.0 and not 2.13.0+cpu.
    """
    found = dict(packages)
    for name in ALSO_PINNED:
        try:
            found.setdefault(name, version(name))
        except PackageNotFoundError:
            continue
    return [f"{name}=={number.split('+')[0]}" for name, number in sorted(found.items())]
