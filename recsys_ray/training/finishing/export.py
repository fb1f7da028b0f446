"""The export of a model bundle: every rank writes the weights that it holds, and rank 0 what belongs to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recsys_ray.bundle.manifest import MANIFEST as MANIFEST_FILE
from recsys_ray.bundle.manifest import BundleFile, Manifest, StoredTensor, content_version, file_entry
from recsys_ray.bundle.reader import open_bundle
from recsys_ray.bundle.writer import local_parts, merged_parts, write_parts
from recsys_ray.config.serialization import to_values
from recsys_ray.data.dataset.atomic_folder import move_into_place, remove_folder
from recsys_ray.data.dataset.directory import DatasetDirectory, copy_encoding
from recsys_ray.distributed import World
from recsys_ray.models.registry import model_name
from recsys_ray.training.loop import Run

BUNDLE_FOLDER = "model"
PACKAGES = ("recsys-ray", "torch", "torchrec", "ray", "pyarrow", "numpy", "safetensors")


def export_bundle(run: Run, dataset: DatasetDirectory, outcome: dict[str, Any], step: int) -> None:
    """Writes the model, which holds the weights of checkpoint `step`, into the run's `model` folder. Every worker calls it.

    The folder appears all at once, in the place of an earlier one. Raises RuntimeError where a worker could not write its part.
    """
    folder = Path(run.config.run_dir) / BUNDLE_FOLDER
    staging = folder.with_name(f".{BUNDLE_FOLDER}.partial")
    if run.world.rank == 0:
        remove_folder(staging)
        staging.mkdir(parents=True)
    dist.barrier()
    state = run.model.state_dict()
    written = on_every_rank(run.world, lambda: write_parts(staging, local_parts(state, run.world.rank), run.world.rank))

    def complete() -> None:
        files, tensors = merged_parts(state, written)
        files |= write_settings(run, dataset, staging)
        manifest = describe(run, dataset, outcome, step, files=files, tensors=tensors)
        (staging / MANIFEST_FILE).write_text(manifest.to_json())
        move_into_place(staging, folder)
        remove_folder(staging)

    on_every_rank(run.world, complete if run.world.rank == 0 else lambda: None)


def write_settings(run: Run, dataset: DatasetDirectory, folder: Path) -> dict[str, BundleFile]:
    """Writes the model's settings, the schema and the vocabularies, and returns these files by their path."""
    model = to_values(run.config, model_name(run.config.model))["model"]
    (folder / "config.json").write_text(json.dumps(model, indent=2, allow_nan=False) + "\n")
    copy_encoding(dataset, folder)
    paths = [folder / "config.json", folder / "schema.json", *(folder / "vocabularies").glob("*.parquet")]
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in paths}


def describe(
    run: Run,
    dataset: DatasetDirectory,
    outcome: dict[str, Any],
    step: int,
    *,
    files: dict[str, BundleFile],
    tensors: dict[str, StoredTensor],
) -> Manifest:
    """Returns the manifest of a bundle with these files and tensors."""
    tested = {name: value for name, value in outcome.items() if name.startswith("test_")}
    metrics = {name: value for name, value in tested.items() if value is not None and math.isfinite(value)}
    return Manifest(
        model=model_name(run.config.model),
        version=content_version(files),
        step=step,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset={"path": str(dataset.root), "fingerprint": dataset.summary["fingerprint"]},
        packages={name: version(name) for name in PACKAGES},
        metrics=metrics,
        files=files,
        tensors=tensors,
    )


def exported_step(run_dir: str) -> int | None:
    """Returns the step of the checkpoint whose weights the run's bundle holds; None where there is no bundle that can be read."""
    try:
        return open_bundle(Path(run_dir) / BUNDLE_FOLDER).manifest.step
    except (FileNotFoundError, ValueError):
        return None


def on_every_rank(world: World, action: Callable[[], Any]) -> list[Any]:
    """Runs `action` on every rank and returns all results by rank. Raises RuntimeError on all of them where one failed."""
    outcome: tuple[Any, str]
    try:
        outcome = action(), ""
    except Exception as error:  # a rank that raised alone would leave the others waiting in the collective
        outcome = None, f"rank {world.rank}: {type(error).__name__}: {error}"
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, outcome)
    if failures := [failure for _, failure in found if failure]:
        raise RuntimeError(f"the model bundle could not be written ({'; '.join(failures)}): run again to export it")
    return [result for result, _ in found]
