"""The identity of a run (model, schema, data, order of rows), which a resumed run must share, and settings that may change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from recsys_ray.config import TrainConfig
from recsys_ray.config.serialization import flatten
from recsys_ray.data.dataset.directory import DatasetDirectory

REPORTED = ("optimizer", "train", "sharding")
ABSENT = "none"


def run_identity(config: TrainConfig, dataset: DatasetDirectory) -> dict[str, Any]:
    """Returns what identifies the run, as it reads back from JSON."""
    columns = {column["name"]: column for column in json.loads(dataset.schema.to_json())["columns"]}
    found = {
        "model": {"kind": type(config.model).__name__, **dataclasses.asdict(config.model)},
        "schema": columns,
        "optimizer": {"sparse": config.optimizer.sparse},
        "order": {"train.seed": config.train.seed, "data.num_canonical_nodes": config.data.num_canonical_nodes},
        "dataset": {"fingerprint": dataset.summary["fingerprint"], "block_rows": dataset.summary["block_rows"]},
    }
    return json.loads(json.dumps(found))


def check_same_run(saved: dict[str, Any], now: dict[str, Any], run_dir: str) -> None:
    """Raises ValueError naming every difference between the saved run and this one, and the remedy."""
    if differences := _differences(saved, now):
        raise ValueError(
            f"--run-dir {run_dir} holds another run, which cannot be resumed with these settings: {'; '.join(differences)}. "
            f"Set these back, or start a new run from its weights: another --run-dir, with --init-from {run_dir}"
        )


def changed_settings(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Returns a line for each setting that may change and has: a learning rate, the batch, or the sharding plan."""
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    return _differences({part: saved[part] for part in REPORTED}, {part: now[part] for part in REPORTED})


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = flatten(before), flatten(after)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} {old.get(name, ABSENT)} -> {new.get(name, ABSENT)}"
        for name in names
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    ]
