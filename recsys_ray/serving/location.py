"""Finds a bundle at a location: a run, its folder, a URL that fsspec reads, or a model that is registered in MLflow."""

from __future__ import annotations

from pathlib import Path

from recsys_ray.bundle.fetch import local_bundle

MLFLOW_URIS = ("models:/", "runs:/")


def bundle_folder(location: str) -> Path:
    """Returns the folder of a bundle on this machine, which is a copy where the bundle lies elsewhere."""
    if location.startswith(MLFLOW_URIS):
        # Not at the top: MLflow takes a second to import, and folders and URLs need none.
        from recsys_ray.reporting.registry.artifacts import fetch_bundle

        return fetch_bundle(location)
    return local_bundle(location)


def pinned_location(location: str) -> str:
    """Returns a location that means the same bundle in every process: an absolute path, and a version in place of an alias.

    URLs stay as they are. Raises FileNotFoundError for an alias that no version has.
    """
    if location.startswith(MLFLOW_URIS):
        from recsys_ray.reporting.registry.artifacts import without_alias

        return without_alias(location)
    return location if "://" in location else str(Path(location).absolute())
