"""Copies a bundle from an object store to this machine, once for each version."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from fsspec.core import url_to_fs

from recsys_ray.bundle.manifest import MANIFEST, parse_manifest
from recsys_ray.bundle.reader import open_bundle


def local_bundle(location: str) -> Path:
    """Returns the folder of a bundle on this machine: `location` itself, or a copy where it is a URL.

    Copies stay in the user's own folder for temporary files. Raises FileNotFoundError where the URL has no bundle.
    """
    if "://" not in location:
        return Path(location)
    files, root = url_to_fs(location.rstrip("/"))
    found = next((path for path in (root, f"{root}/model") if files.exists(f"{path}/{MANIFEST}")), None)
    if found is None:
        raise FileNotFoundError(f"{location} has no model bundle (no {MANIFEST})")
    text = files.cat_file(f"{found}/{MANIFEST}").decode()
    manifest = parse_manifest(text, f"{location}/{MANIFEST}")
    copy = Path(tempfile.gettempdir(), f"recsys_ray_bundles_{os.getuid()}", manifest.version)
    if not (copy / MANIFEST).exists() or open_bundle(copy).manifest != manifest:
        _copy(files, found, [*manifest.files, MANIFEST], copy)
    return copy


def _copy(files: object, root: str, names: list[str], to: Path) -> None:
    """Copies the manifest's files, and no others, under another name, then renames the folder."""
    partial = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True, mode=0o700)
    for name in names:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        files.get_file(f"{root}/{name}", str(partial / name))  # type: ignore[attr-defined]
    if to.exists():
        to.rename(partial.with_suffix(".replaced"))
    partial.rename(to)
