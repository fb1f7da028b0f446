"""The rows of a dataset directory for a model that was trained on another one: its vocabularies and scales differ.

A directory holds encoded rows. Where a column is encoded alike in dataset and model its values pass unchanged. Elsewhere an id's
table row is looked up again by the id that it stands for, and a number is scaled again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.transform import scaled, table_rows
from recsys_ray.data.vocabulary import Vocabularies
from recsys_ray.schema import Categorical, Column, Dense
from recsys_ray.serving.encoder import Encoder

ValueMapping = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RowMapping:
    """The translation of a dataset's encoded columns into those of a model."""

    mappings: dict[str, ValueMapping | None]
    """Feature column -> how its values change; None where they do not."""

    @staticmethod
    def of(dataset: DatasetDirectory, encoder: Encoder, columns: Sequence[Categorical | Dense]) -> RowMapping:
        """Returns the mapping for these features of the model. Raises ValueError naming a column that cannot be translated."""
        stored = {column.name: column for column in dataset.schema.features}
        values = load_vocabularies(dataset.root, dataset.schema)
        return RowMapping({column.name: _mapping(stored.get(column.name), column, values, encoder) for column in columns})

    def __call__(self, columns: Columns) -> Columns:
        """Returns the model's columns of encoded rows of the dataset."""
        found: Columns = {}
        for name, mapping in self.mappings.items():
            found[name] = columns[name] if mapping is None else mapping(columns[name])
            if name + LENGTHS in columns:
                found[name + LENGTHS] = columns[name + LENGTHS]
        return found

    @property
    def translated(self) -> list[str]:
        """The columns that are not encoded alike."""
        return [name for name, mapping in self.mappings.items() if mapping is not None]


def _mapping(stored: Column | None, wanted: Categorical | Dense, values: Vocabularies, encoder: Encoder) -> ValueMapping | None:
    if stored is None:
        raise ValueError(f"column {wanted.name!r}, which the model reads, is not in the dataset: use one that has it")
    if isinstance(stored, Dense) and isinstance(wanted, Dense):
        return None if replace(stored, side=wanted.side) == wanted else _number_mapping(stored, wanted)
    if isinstance(stored, Categorical) and isinstance(wanted, Categorical) and stored.multi == wanted.multi:
        return _id_mapping(stored, wanted, values, encoder)
    raise ValueError(f"column {wanted.name!r} is of another kind in the dataset than in the model")


def _number_mapping(stored: Dense, wanted: Dense) -> ValueMapping:
    def mapping(numbers: torch.Tensor) -> torch.Tensor:
        values = numbers.numpy().astype(np.float64)
        raw = values * stored.std + stored.mean if stored.scale == "standard" else values
        raw = np.sign(values) * np.expm1(np.abs(values)) if stored.scale == "log1p" else raw
        missing = numbers.numpy() == np.float32(stored.fill)  # a real value that equals it is one in very many
        return torch.from_numpy(scaled(wanted, pa.array(raw, mask=missing)).astype(np.float32))

    return mapping


def _id_mapping(stored: Categorical, wanted: Categorical, values: Vocabularies, encoder: Encoder) -> ValueMapping | None:
    hashed, fields = stored.encoding == "hash", ("encoding", "num_embeddings", "dtype")
    if hashed and any(getattr(stored, field) != getattr(wanted, field) for field in fields):
        raise ValueError(
            f"column {wanted.name!r} is hashed in the dataset, which therefore does not hold its ids, and the model encodes it "
            "otherwise: evaluate on a dataset with the model's encoding"
        )
    if hashed or _same_values(stored, wanted, values, encoder):
        return None
    known = pa.array(range(stored.num_embeddings - 1)) if stored.encoding == "identity" else values[stored.table_name]
    rows = table_rows(wanted, known, encoder.lookups)
    rows = np.where(rows < wanted.num_embeddings, rows, 0)  # an identity table of the model may be smaller
    return _Lookup(torch.from_numpy(np.concatenate([[0], rows]).astype(np.int32)))


def _same_values(stored: Categorical, wanted: Categorical, values: Vocabularies, encoder: Encoder) -> bool:
    if stored.encoding != wanted.encoding or stored.num_embeddings != wanted.num_embeddings:
        return False
    return stored.encoding == "identity" or encoder.lookups[wanted.table_name].values.equals(values[stored.table_name])


@dataclass(frozen=True)
class _Lookup:
    """The model's table row of each table row of the dataset."""

    rows: torch.Tensor

    def __call__(self, stored: torch.Tensor) -> torch.Tensor:
        return self.rows[stored.long()]
