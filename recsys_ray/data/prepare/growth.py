"""Growing a dataset from an earlier one: its vocabularies and scales are kept, so that weights trained on it still fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.prepare.statistics import (
    NOTHING_KEPT,
    KeptStatistics,
    Scale,
    Statistics,
    standardised_columns,
    table_size,
)
from recsys_ray.data.vocabulary import value_hashes
from recsys_ray.schema import Categorical, Schema

UNMEASURED = Scale(0.0, 1.0)
"""The scale of a column that had no value, or only zeros: not worth keeping."""


@dataclass(frozen=True)
class EarlierDataset:
    """The dataset that this one grows from: what is kept of it, and which dataset it is."""

    kept: KeptStatistics = NOTHING_KEPT
    path: str = ""
    """Empty when this dataset grows from none."""
    fingerprint: str | None = None

    @staticmethod
    def open(path: str, schema: Schema) -> EarlierDataset:
        """Reads what a dataset with `schema` keeps of the dataset directory `path`.

        Raises FileNotFoundError when `path` is not a dataset directory, ValueError when a value would change its table row.
        """
        old = DatasetDirectory.open(path)
        tables = {name: (new[0], old.schema.tables[name][0]) for name, new in schema.tables.items() if name in old.schema.tables}
        for name, (new, before) in tables.items():
            _check_same_rows(name, new, before, path)
        loaded = load_vocabularies(old.root, old.schema)
        vocabularies = {name: values for name, values in loaded.items() if name in tables}
        for name, values in vocabularies.items():
            new, before = tables[name]
            _check_whole_vocabulary(name, len(values), before, path)
            _check_room(name, len(values), new, path)
        kept = KeptStatistics(vocabularies, _kept_scales(schema, old.schema))
        return EarlierDataset(kept, str(Path(path).absolute()), old.summary.get("fingerprint"))

    @property
    def stamp(self) -> str:
        """Text that changes when what is kept does, wherever the dataset lies."""
        digest = hashlib.sha256(json.dumps(self.kept.scales, sort_keys=True).encode())
        for name, values in sorted(self.kept.vocabularies.items()):
            digest.update(name.encode() + value_hashes(values).tobytes())
        return digest.hexdigest()

    def growth(self, statistics: Statistics, wanted: Schema) -> dict[str, Any]:
        """Returns for the summary, and prints, how many values each vocabulary had and has.

        `wanted` is the schema as the user gave it, whose num_embeddings says which tables are full.
        """
        counts = {}
        for name, values in statistics.vocabularies.items():
            had, has, limit = len(self.kept.vocabularies.get(name, ())), len(values), wanted.tables[name][0].num_embeddings
            full = f", all that num_embeddings {limit} leaves room for" if has + 1 == limit else ""
            print(f"prepare: table {name!r} had {had:,} values and has {has:,}{full}", flush=True)
            counts[name] = {"had": had, "has": has}
        return {"path": self.path, "fingerprint": self.fingerprint, "values": counts}


def _kept_scales(schema: Schema, old: Schema) -> dict[str, Scale]:
    names = {column.name for column in standardised_columns(schema)}
    scales = {column.name: Scale(column.mean, column.std) for column in standardised_columns(old)}
    return {name: scale for name, scale in scales.items() if name in names and scale != UNMEASURED}


def _check_same_rows(name: str, new: Categorical, old: Categorical, path: str) -> None:
    """Raises ValueError when a setting that decides the table row of a value has changed; for hashes the table size is one."""
    for setting in ("encoding", "dtype", *(("num_embeddings",) if new.encoding == "hash" else ())):
        if (ours := getattr(new, setting)) != (theirs := getattr(old, setting)):
            raise ValueError(
                f"table {name!r}: {setting} is {ours!r} in the schema but {theirs!r} in --grow-from {path}, so its values would "
                f'change rows: make the schema agree, or start anew under another name ("table": "{name}_2")'
            )


def _check_whole_vocabulary(name: str, values: int, old: Categorical, path: str) -> None:
    if table_size(values) != old.num_embeddings:
        raise ValueError(
            f"table {name!r}: --grow-from {path} has a vocabulary of {values} values, but num_embeddings {old.num_embeddings} "
            "in its schema.json, so they do not belong together: prepare that dataset again"
        )


def _check_room(name: str, values: int, new: Categorical, path: str) -> None:
    if new.num_embeddings and values >= new.num_embeddings:
        raise ValueError(
            f"table {name!r}: num_embeddings {new.num_embeddings} in the schema leaves room for {new.num_embeddings - 1} values, "
            f"but --grow-from {path} has {values} and drops none: say {values + 1} or more, or 0 for no limit"
        )
