"""Copies a bundle from an object store to this machine, once for each version."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Protocol

from fsspec.core import url_to_fs

from recsys_ray.bundle.manifest import MANIFEST, Manifest, check_file, parse_manifest
from recsys_ray.files.own_folder import own_folder


class RemoteFiles(Protocol):
    """A store that a bundle is copied from, such as a file system of fsspec."""

    def cat_file(self, path: str) -> bytes:
        """Returns the content of a file."""

    def get_file(self, rpath: str, lpath: str) -> object:
        """Copies the file `rpath` of the store to `lpath` on this machine."""


def local_bundle(location: str) -> Path:
    """Returns the folder of a bundle on this machine: `location` itself, or a copy where it is a URL.

    Raises FileNotFoundError where the URL has no bundle.
    """
    if "://" not in location:
        return Path(location)
    files, root = url_to_fs(location.rstrip("/"))
    found = next((path for path in (root, f"{root}/model") if files.exists(f"{path}/{MANIFEST}")), None)
    if found is None:
        raise FileNotFoundError(f"{location} has no model bundle (no {MANIFEST})")
    return copied_bundle(files, found, location)


def copied_bundle(files: RemoteFiles, root: str, origin: str) -> Path:
    """Returns a copy on this machine of the bundle in the folder `root` of a store, which `origin` names in errors.

    Copies stay in the user's own folder for temporary files, one for each manifest: runs that end with the same weights, and so
    with the same version, differ in when and on what they were trained.

    Raises BundleError where a file is damaged, and PermissionError where that folder is another user's.
    """
    text = files.cat_file(f"{root}/{MANIFEST}")
    manifest = parse_manifest(text.decode(), f"{origin}/{MANIFEST}")
    name = f"{manifest.version}_{hashlib.sha256(text).hexdigest()[:8]}"
    copy = own_folder(Path(tempfile.gettempdir(), f"recsys_ray_bundles_{os.getuid()}")) / name
    if not _is_complete(copy, manifest):
        _copy(files, root, manifest, copy)
    return copy


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Returns whether no file is missing: temporary folders are cleaned file by file."""
    return all((folder / name).exists() for name in [*manifest.files, MANIFEST])


def _copy(files: RemoteFiles, root: str, manifest: Manifest, to: Path) -> None:
    """Copies the manifest's files, and no others, under another name, then renames the folder."""
    partial = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True, mode=0o700)
    try:
        _fetch_into(partial, files, root, manifest)
        if not _is_complete(to, manifest):
            shutil.rmtree(to, ignore_errors=True)
        _rename(partial, to, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch_into(folder: Path, files: RemoteFiles, root: str, manifest: Manifest) -> None:
    """Copies the files. Raises BundleError for a damaged one, which the next call would otherwise take for the bundle's own."""
    for name in [*manifest.files, MANIFEST]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.get_file(f"{root}/{name}", str(folder / name))
        if name in manifest.files:
            check_file(folder / name, manifest.files[name], f"{root}/{name}")


def _rename(partial: Path, to: Path, manifest: Manifest) -> None:
    try:
        partial.rename(to)
    except OSError:
        if not _is_complete(to, manifest):  # else another process has copied it meanwhile
            raise
