"""Checks that an installed library has a version whose private names are known."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata


class UncheckedVersionError(ImportError):
    """A library is installed in a version whose private names were not checked."""


def require_version(package: str, versions: Sequence[str]) -> None:
    """Raises UncheckedVersionError unless the installed `package` has one of `versions`, each as "major.minor"."""
    installed = _installed_version(package)
    if installed.replace("+", ".").split(".")[:2] not in [version.split(".") for version in versions]:
        raise UncheckedVersionError(
            f"{package} {installed} is installed, and recsys_ray uses private parts of it that were checked for "
            f"{' and '.join(versions)} only: install one of these"
        )


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # as Databricks' own pyspark, which pip has not installed
        return import_module(package).__version__
