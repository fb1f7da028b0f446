"""Versions of registered models: found by alias or by the run that they are from, and marked with aliases, tags and a text."""

from __future__ import annotations

from typing import NamedTuple

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

BUNDLE_VERSION = "recsys_ray.bundle_version"
"""The tag of a registered version that holds the version of its bundle."""
NO_SUCH_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes where a model has no such alias: which one depends on the registry."""


class RegisteredVersion(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    run_id: str
    bundle_version: str
    description: str

    @property
    def uri(self) -> str:
        """The URI by which MLflow and `load_bundle` know it."""
        return f"models:/{self.name}/{self.number}"


def version_at(name: str, alias: str) -> RegisteredVersion | None:
    """Returns the version that has an alias; None where none has."""
    try:
        return _registered(MlflowClient().get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code not in NO_SUCH_ALIAS:
            raise
        return None


def version_of(name: str, run_id: str, bundle_version: str) -> RegisteredVersion | None:
    """Returns the version that a run's bundle is registered as; None where it is not."""
    client = MlflowClient()
    try:
        of_run = [one for one in client.search_model_versions(f"name='{name}'") if one.run_id == run_id]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # Unity Catalog says so of a model without versions
            raise
        return None
    # Unity Catalog's search returns no tags.
    found = (_registered(client.get_model_version(name, one.version)) for one in of_run)
    return next((one for one in found if one.bundle_version == bundle_version), None)


def is_newest(version: RegisteredVersion) -> bool:
    """Returns whether no later version of the same model is registered."""
    numbers = [int(one.version) for one in MlflowClient().search_model_versions(f"name='{version.name}'")]
    return int(version.number) == max(numbers)


def move_alias(alias: str, version: RegisteredVersion) -> None:
    """Gives an alias to a version; another version of the model that had it loses it."""
    MlflowClient().set_registered_model_alias(version.name, alias, version.number)


def annotate(version: RegisteredVersion, text: str, tags: dict[str, str]) -> None:
    """Sets tags of a version, and adds a text to its description, in the place of an earlier text."""
    client = MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.number, key, value)
    first = version.description.split("\n\n")[0]
    client.update_model_version(version.name, version.number, description=f"{first}\n\n{text}")


def _registered(version: ModelVersion) -> RegisteredVersion:
    bundle_version = (version.tags or {}).get(BUNDLE_VERSION, "")
    return RegisteredVersion(version.name, str(version.version), version.run_id or "", bundle_version, version.description or "")
