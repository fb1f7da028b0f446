"""The bundle of a registered model, or of an MLflow run, copied to this machine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath

import mlflow
from mlflow.exceptions import MlflowException

from recsys_ray.bundle.fetch import copied_bundle
from recsys_ray.bundle.manifest import MANIFEST
from recsys_ray.reporting.registry.address import show_progress_on_terminals_only
from recsys_ray.reporting.registry.versions import version_at

LOGGED_ARTIFACTS = "artifacts"
"""The folder of a logged model that holds its bundle's folder."""
RUN_BUNDLE = "model"
"""The folder of a run's artifacts that holds its bundle."""


def fetch_bundle(location: str) -> Path:
    """Returns a copy of the bundle at models:/name/3, models:/name@alias, runs:/id or runs:/id/model, made once a version.

    MLflow's own settings, such as MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI, say where to look.
    Raises FileNotFoundError where there is no such version, alias, run or bundle.
    """
    show_progress_on_terminals_only()
    try:
        origin = _complete(without_alias(location.rstrip("/")))
        return copied_bundle(ArtifactFiles(), _bundle_root(origin), location)
    except MlflowException as error:
        raise FileNotFoundError(
            f"{location} cannot be read from MLflow at {mlflow.get_registry_uri()} ({error.message}): "
            "MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI say where models are"
        ) from error


class ArtifactFiles:
    """Artifacts in MLflow as RemoteFiles, each named by its URI."""

    def cat_file(self, path: str) -> bytes:
        """Returns the content of an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=path, dst_path=folder)).read_bytes()

    def get_file(self, rpath: str, lpath: str) -> None:
        """Copies an artifact to `lpath`."""
        with tempfile.TemporaryDirectory(dir=Path(lpath).parent) as folder:
            shutil.move(mlflow.artifacts.download_artifacts(artifact_uri=rpath, dst_path=folder), lpath)


def without_alias(location: str) -> str:
    """Returns the URI with the version in place of an alias, which might move to another version while files are copied."""
    name, _, alias = location.removeprefix("models:/").partition("@")
    if not alias or not location.startswith("models:/"):
        return location
    if (version := version_at(name, alias)) is None:
        raise FileNotFoundError(
            f"{location}: no version of {name} has the alias {alias} in MLflow at {mlflow.get_registry_uri()}"
        )
    return version.uri


def _complete(location: str) -> str:
    """Returns the URI with the folder of the bundle where it names a run alone."""
    return f"{location}/{RUN_BUNDLE}" if location.startswith("runs:/") and location.count("/") == 1 else location


def _bundle_root(location: str) -> str:
    """Returns the URI of the folder with the manifest: `location`, or the bundle in a logged model."""
    names = _names(location)
    if MANIFEST in names:
        return location
    for folder in _names(f"{location}/{LOGGED_ARTIFACTS}") if LOGGED_ARTIFACTS in names else []:
        root = f"{location}/{LOGGED_ARTIFACTS}/{folder}"
        if MANIFEST in _names(root):
            return root
    raise FileNotFoundError(f"{location} holds no model bundle (no {MANIFEST}), but {', '.join(sorted(names)) or 'nothing'}")


def _names(uri: str) -> list[str]:
    return [PurePosixPath(file.path).name for file in mlflow.artifacts.list_artifacts(artifact_uri=uri)]
