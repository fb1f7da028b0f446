"""The items that may be recommended, as a service holds them: raw columns for answers, and what the ranking model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.data.vocabulary import ValueLookup
from recsys_ray.models.rows import take_rows
from recsys_ray.serving.pair_scores import SideFeatures
from recsys_ray.serving.ranker import PREDICTED_AT_ONCE, PairSide, Ranker

LARGEST_LOOKED_UP = 1 << 28
"""The most bytes of features that are looked up for all items beforehand, in each process."""


@dataclass(frozen=True)
class ServedCatalogue:
    """N items. An item is named by its position, 0 to N - 1, everywhere but in questions and answers."""

    raw: pa.Table
    """The catalogue's raw columns."""
    key: str
    """The column that tells items apart."""
    lookup: ValueLookup
    """Finds positions by key."""
    frequency: np.ndarray
    """float32 [N]: how many positive training rows have each item."""
    ranked_items: PairSide | None = None
    """The items as `Ranker.score_pairs` takes them; None without a ranking model."""

    @staticmethod
    def load(dataset: DatasetDirectory, key: str, ranker: Ranker | None = None) -> ServedCatalogue:
        """Reads the catalogue of a dataset directory. Raises ValueError for an item column of `ranker` that it does not have."""
        table = load_catalogue(dataset)
        raw = table.drop_columns([FREQUENCY])
        keys = raw[key].combine_chunks()
        keys = keys.cast(pa.int64() if pa.types.is_integer(keys.type) else pa.string())
        ranked = None if ranker is None else ranked_items(ranker, raw)
        frequency = table[FREQUENCY].to_numpy().astype(np.float32)
        return ServedCatalogue(raw, key, ValueLookup.of(keys), frequency, ranked)

    def __len__(self) -> int:
        return self.raw.num_rows

    def positions(self, keys: Iterable[Any] | pa.Array) -> np.ndarray:
        """Returns the position of each key, int64; -1 for one that is not in the catalogue."""
        kind = self.lookup.values.type
        values = keys.cast(kind) if isinstance(keys, pa.Array) else pa.array(keys, kind)
        return self.lookup.rows(values).astype(np.int64) - 1

    def keys(self, positions: np.ndarray) -> pa.Array:
        """Returns the keys of the items at these positions; null for -1."""
        return self.lookup.values.take(pa.array(positions, mask=positions < 0))

    def items(self, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Returns raw columns of the items at these positions."""
        return self.raw.select(list(columns)).take(pa.array(positions))


def ranked_items(ranker: Ranker, items: pa.Table) -> PairSide:
    """Returns raw items as `Ranker.score_pairs` takes them: looked up, or encoded only where that would take too much memory."""
    columns = ranker.encoder.encode(items, ranker.schema.features_of("item"))
    looked_up = []
    for rows in torch.arange(items.num_rows).split(PREDICTED_AT_ONCE):
        part = ranker.look_up(take_rows(columns, rows), "item")
        if not isinstance(part, SideFeatures) or sum(one.nbytes for one in part) * items.num_rows > LARGEST_LOOKED_UP * len(rows):
            return columns
        looked_up.append(part)
    return SideFeatures(*map(torch.cat, zip(*looked_up, strict=True)))
