"""Starts a new run from the weights of an earlier one: tensors are matched by name, rows of vocabulary tables by value.

    python jobs/train_dlrm.py --data.path datasets/tuesday --run-dir runs/tuesday --init-from runs/monday

A value that both datasets have keeps its embedding, wherever its row is now; new values keep their random start. Optimizer state
starts empty. The weights are memory-mapped, and only the rows that this worker holds are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from recsys_ray.bundle.reader import BundleFolder, open_bundle
from recsys_ray.compat.torch_compat import ShardedTensor
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.models.embeddings import module_name
from recsys_ray.schema import Schema
from recsys_ray.sharding.local_tables import TablePart, local_tables, table_in_name

ROWS_AT_ONCE = 1 << 20
NEW = -1


@dataclass(frozen=True)
class _Source:
    """The weights to start from, and for each table the old row of each new row."""

    bundle: BundleFolder
    matches: dict[str, np.ndarray | None]

    def size(self, name: str) -> list[int]:
        return list(self.bundle.manifest.tensors[name].shape)


def warm_start(earlier: str, dataset: DatasetDirectory, model: Any) -> list[str]:
    """Fills `model`, on every worker, and returns a line for each tensor: what matched and what did not.

    Raises FileNotFoundError where `earlier` is neither a finished run nor its model, BundleError where its files do not fit.
    """
    try:
        bundle = open_bundle(earlier)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--init-from {error}") from error
    source = _Source(bundle, row_matches(bundle.folder, dataset))
    lines = [f"weights from {bundle.folder}:"]
    state, old, tables = model.state_dict(), bundle.manifest.tensors, local_tables(model)
    for name, tensor in state.items():
        done = "not there, starts as new"
        if name in old:
            done = _fill_table(name, tensor, tables[name], source) if name in tables else _fill(name, tensor, source)
        lines.append(f"  {name}: {done}")
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


def _fill_table(name: str, tensor: torch.Tensor | ShardedTensor, parts: list[TablePart], source: _Source) -> str:
    old, rows = source.size(name), source.matches.get(table_in_name(name))
    if rows is None or tensor.size()[1] != old[1]:
        return f"starts as new, since rows or width do not fit (there {old}, here {list(tensor.size())})"
    for part in parts:
        _fill_rows(name, part, source.bundle, rows)
    kept = int((rows != NEW).sum())
    return f"{kept:,} of {len(rows):,} rows, {len(rows) - kept:,} new; {old[0] - kept:,} of the old not here"


def _fill(name: str, tensor: torch.Tensor, source: _Source) -> str:
    old = source.size(name)
    if list(tensor.shape) != old:
        return f"starts as new, since its shape there was {old} and is {list(tensor.shape)}"
    with torch.no_grad():
        tensor.copy_(source.bundle.read_tensor(name))
    return "all of it"


@torch.no_grad()
def _fill_rows(name: str, part: TablePart, bundle: BundleFolder, rows: np.ndarray) -> None:
    """Copies matching rows piece by piece, since a large table must not be in memory twice."""
    (first, left), (count, width) = part.offsets, part.tensor.shape
    for start in range(0, min(count, max(len(rows) - first, 0)), ROWS_AT_ONCE):
        wanted = torch.from_numpy(rows[first + start : first + min(start + ROWS_AT_ONCE, count)])
        here = (wanted != NEW).nonzero().squeeze(1)
        old = bundle.gather_rows(name, wanted[here], slice(left, left + width))
        part.tensor[start + here] = old.to(part.tensor)
