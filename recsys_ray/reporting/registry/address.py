"""The MLflow tracking server and model registry that a job speaks to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from recsys_ray.command_line import JobError

TRACKING_VARIABLE, REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
"""The environment variables in which MLflow keeps its URIs, those set by its functions too."""
PROGRESS_VARIABLE = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


@dataclass(frozen=True)
class RegistryAddress:
    """The MLflow URIs of runs and of registered models."""

    tracking_uri: str = ""
    """Empty: MLflow's own default, such as MLFLOW_TRACKING_URI."""
    registry_uri: str = ""
    """Empty: MLflow's own default: MLFLOW_REGISTRY_URI, or Unity Catalog beside Databricks, or else the tracking URI."""


@contextmanager
def connected(address: RegistryAddress) -> Iterator[str]:
    """Lets MLflow use this address within the block, and yields the URI of the registry.

    Raises JobError with MLflow's message where MLflow refuses a request or cannot be reached.
    """
    tracking, registry = os.environ.get(TRACKING_VARIABLE), os.environ.get(REGISTRY_VARIABLE)
    show_progress_on_terminals_only()
    try:
        if address.tracking_uri:
            mlflow.set_tracking_uri(address.tracking_uri)
        if address.registry_uri:
            mlflow.set_registry_uri(address.registry_uri)
        yield mlflow.get_registry_uri()
    except MlflowException as error:
        raise JobError(f"MLflow at {mlflow.get_registry_uri()}: {error.message}") from error
    finally:
        if address.tracking_uri:
            mlflow.set_tracking_uri(tracking)  # type: ignore[arg-type]  # None forgets it
        if address.registry_uri:
            mlflow.set_registry_uri(registry)  # type: ignore[arg-type]
            if registry is None:
                del os.environ[REGISTRY_VARIABLE]


def show_progress_on_terminals_only() -> None:
    """Turns off MLflow's progress bars, one for each file, where they would fill a log, unless the user has decided."""
    if not sys.stderr.isatty():
        os.environ.setdefault(PROGRESS_VARIABLE, "false")
