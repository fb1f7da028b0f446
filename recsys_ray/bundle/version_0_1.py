"""Bundles of version 0.1: one file of weights, schema.json and vocabularies/, with the settings in the run's config.json."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from safetensors import safe_open

from recsys_ray.bundle.manifest import BundleError, Manifest, StoredTensor, TensorPart, file_entry

WEIGHTS_FILE = "weights.safetensors"
RUN_CONFIG = "config.json"
SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def old_manifest(folder: Path) -> Manifest:
    """Returns the manifest that a bundle of version 0.1 would have; its `version` is the one that indexes of 0.1 have.

    Its checksums are those of the files as they are now: version 0.1 stored none.
    """
    weights = folder / WEIGHTS_FILE
    with safe_open(weights, framework="pt") as file:
        tensors = {name: _stored(name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Manifest(
        model=old_settings(folder)["model"].get("name", ""),
        version=hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        step=0,
        created=datetime.fromtimestamp(weights.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        dataset={"path": old_settings(folder)["data"]["path"], "fingerprint": ""},
        packages={},
        metrics={},
        files={path.relative_to(folder).as_posix(): file_entry(path) for path in files},
        tensors=tensors,
    )


def old_settings(folder: Path) -> dict:
    """Returns the configuration of the run whose `model` folder this is. Raises BundleError where it is not beside it."""
    config = folder.parent / RUN_CONFIG
    if not config.exists():
        raise BundleError(f"{folder} is a bundle of version 0.1, whose settings are in {config}, which is not there")
    return json.loads(config.read_text())


def _stored(name: str, values: object) -> StoredTensor:
    shape = tuple(values.get_shape())  # type: ignore[attr-defined]
    return StoredTensor(SAFETENSORS_TYPES[values.get_dtype()], shape, (TensorPart(WEIGHTS_FILE, (0,) * len(shape), shape),))  # type: ignore[attr-defined]
