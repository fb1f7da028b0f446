"""Starts a new run from the weights of an earlier one: tensors are matched by name, rows of vocabulary tables by value.

    python jobs/train_dlrm.py --data.path datasets/tuesday --run-dir runs/tuesday --init-from runs/monday

A value that both datasets have keeps its embedding, wherever its row is now; new values keep their random start. Optimizer state
starts empty. The weights file is memory-mapped, and only the rows that this worker holds are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from safetensors import safe_open

from recsys_ray.compat.torch_compat import LocalShard, ShardedTensor
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.models.embeddings import module_name
from recsys_ray.schema import Schema

WEIGHTS_FILE = "weights.safetensors"
ROWS_AT_ONCE = 1 << 20
NEW = -1


def warm_start(earlier: str, dataset: DatasetDirectory, model: Any) -> list[str]:
    """Fills `model`, on every worker, and returns a line for each tensor: what matched and what did not.

    Raises FileNotFoundError where `earlier` is neither a finished run nor its model.
    """
    folder = Path(earlier) if (Path(earlier) / WEIGHTS_FILE).exists() else Path(earlier) / "model"
    if not (folder / WEIGHTS_FILE).exists() or not (folder / "schema.json").exists():
        raise FileNotFoundError(
            f"--init-from {earlier}: no model with {WEIGHTS_FILE} and schema.json there; a run that ends writes it"
        )
    matches = row_matches(folder, dataset)
    lines = [f"weights from {folder}:"]
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        old = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (it is no dict)
        state = model.state_dict()
        for name, tensor in state.items():
            lines.append(f"  {name}: {_fill(name, tensor, old[name], matches) if name in old else 'not there, starts as new'}")
    return [*lines, *(f"  {name}: not in this model" for name in sorted(old.keys() - state.keys()))]


def row_matches(folder: Path, dataset: DatasetDirectory) -> dict[str, np.ndarray | None]:
    """Returns, for each table that both have, the old row of each new row or NEW, int64 [rows]; None where none can match."""
    schema = Schema.load(folder / "schema.json")
    old_values, values = load_vocabularies(folder, schema), load_vocabularies(dataset.root, dataset.schema)
    found: dict[str, np.ndarray | None] = {}
    for table in dataset.schema.tables.keys() & schema.tables.keys():
        old, new = schema.tables[table][0], dataset.schema.tables[table][0]
        rows = np.arange(new.num_embeddings)
        match new.encoding:
            case _ if (old.encoding, old.dtype) != (new.encoding, new.dtype):
                found[module_name(table)] = None
            case "vocabulary":
                known = pc.index_in(values[table], value_set=old_values[table]).fill_null(NEW - 1).to_numpy() + 1
                found[module_name(table)] = np.concatenate([[0], known])
            case "identity":
                found[module_name(table)] = np.where(rows < old.num_embeddings, rows, NEW)
            case _:
                found[module_name(table)] = rows if old.num_embeddings == new.num_embeddings else None
    return found


def _fill(name: str, tensor: torch.Tensor, old: torch.Tensor, matches: dict[str, np.ndarray | None]) -> str:
    table = name.split(".")[-2]  # ...embedding_bags.items_table.weight
    if isinstance(tensor, ShardedTensor) and table in matches:
        rows = matches[table]
        if rows is None or tensor.size()[1] != old.shape[1]:
            return f"starts as new, since rows or width do not fit (there {list(old.shape)}, here {list(tensor.size())})"
        for shard in tensor.local_shards():
            _fill_rows(shard, old, rows)
        kept = int((rows != NEW).sum())
        return f"{kept:,} of {len(rows):,} rows, {len(rows) - kept:,} new; {len(old) - kept:,} of the old not here"
    if isinstance(tensor, ShardedTensor) or tensor.shape != old.shape:
        return f"starts as new, since its shape there was {list(old.shape)} and is {list(tensor.size())}"
    with torch.no_grad():
        tensor.copy_(old)
    return "all of it"


@torch.no_grad()
def _fill_rows(shard: LocalShard, old: torch.Tensor, rows: np.ndarray) -> None:
    """Copies matching rows in parts, since a large table must not be in memory twice."""
    (first, left), (count, width) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
    for start in range(0, min(count, max(len(rows) - first, 0)), ROWS_AT_ONCE):
        wanted = torch.from_numpy(rows[first + start : first + min(start + ROWS_AT_ONCE, count)])
        here = (wanted != NEW).nonzero().squeeze(1)
        shard.tensor[start + here] = old[wanted[here], left : left + width].to(shard.tensor)
