"""What makes two starts the same run: model, schema, data, order of rows. The rest may change on the way, and is told."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from recsys_ray.config import TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory

TOLD = ("optimizer", "train", "sharding")
ABSENT = "none"


def identity(config: TrainConfig, dataset: DatasetDirectory) -> dict[str, Any]:
    """As JSON would give it back."""
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
    """Raises ValueError naming every difference, and what to do."""
    if differences := _differences(saved, now):
        raise ValueError(
            f"--run-dir {run_dir} holds another run, which cannot go on so: {'; '.join(differences)}. Set these back, or start "
            f"a new run from its weights: another --run-dir, with --init-from {run_dir}"
        )


def changed_settings(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Such as a learning rate, the batch, or the sharding plan: in words, a line each."""
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    return _differences({part: saved[part] for part in TOLD}, {part: now[part] for part in TOLD})


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = _flat(before), _flat(after)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} {old.get(name, ABSENT)} -> {new.get(name, ABSENT)}"
        for name in names
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
