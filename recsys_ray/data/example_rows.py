"""Raw rows that show what a model takes, made up from its schema and vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from recsys_ray.data.vocabulary import Vocabularies
from recsys_ray.schema import Categorical, Dense

EXAMPLE_VALUES = 2
"""Rows with values; one more row holds nulls, which every column takes."""


def example_rows(columns: Sequence[Categorical | Dense], vocabularies: Vocabularies) -> pa.Table:
    """Returns EXAMPLE_VALUES rows of values that the model knows, the most frequent ones of a vocabulary, and a row of nulls."""
    return pa.table({column.name: pa.array([*_values(column, vocabularies), None]) for column in columns})


def _values(column: Categorical | Dense, vocabularies: Vocabularies) -> list[Any]:
    if isinstance(column, Dense):
        return [column.mean, column.mean + column.std]
    known = vocabularies.get(column.table_name)
    if known is None:
        known = pa.array(range(min(EXAMPLE_VALUES, column.num_embeddings - 1)))
        known = known.cast(pa.string()) if column.dtype == "string" else known
    values = known[:EXAMPLE_VALUES].to_pylist()
    shown = [values[place % len(values)] if values else None for place in range(EXAMPLE_VALUES)]
    return [[one] for one in shown] if column.multi else shown
