"""Feature values of requests, counted by bin."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.transform import encode
from recsys_ray.data.vocabulary import Lookups
from recsys_ray.schema import Categorical, Dense, Schema
from recsys_ray.serving.monitor.drift.bins import Bins
from recsys_ray.serving.monitor.drift.reference import Sample
from recsys_ray.serving.monitor.stability import independent_rows


@dataclass
class ServedFeatures:
    """Feature values of requests, counted file by file. All rows of a request together weigh 1."""

    schema: Schema
    lookups: Lookups
    bins: dict[str, Bins]
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    """Column -> weights by bin, of the columns that the log has."""
    missing: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Column -> weight of missing values."""
    clusters: list[np.ndarray] = field(default_factory=list)
    """Users of the requests."""
    item_clusters: list[np.ndarray] = field(default_factory=list)
    """Users of the requests that carried item columns."""

    def add(self, rows: pa.Table, clusters: np.ndarray) -> None:
        """Counts the requests of a file.

        Item columns count where a request carried any: recommendations do not, nor do rank requests that name items by key.
        """
        lengths = pc.list_value_length(rows["features"]).to_numpy()
        request = np.repeat(np.arange(len(lengths)), lengths)
        values, weights = pc.list_flatten(rows["features"].combine_chunks()), 1 / lengths[request]
        columns = [column for column in self.schema.features if values.type.get_field_index(column.name) >= 0]
        with_items = np.zeros(len(lengths), bool)
        for column in columns:
            if column.side == "item":
                with_items[request[values.field(column.name).is_valid().to_numpy(zero_copy_only=False)]] = True
        self.clusters.append(clusters[lengths > 0])
        self.item_clusters.append(clusters[with_items])
        for column in columns:
            used = with_items[request] if column.side == "item" else np.ones(len(request), bool)
            self._count(column, values.field(column.name).filter(pa.array(used)), weights[used])

    def _count(self, column: Categorical | Dense, values: pa.Array, weights: np.ndarray) -> None:
        nulls = pc.is_null(values, nan_is_null=True).to_numpy(zero_copy_only=False)
        self.missing[column.name] += float(weights[nulls].sum())
        encoded = encode(column, values, self.lookups)
        if pa.types.is_list(encoded.type):
            lengths = np.diff(encoded.offsets.to_numpy())
            encoded, weights = encoded.flatten(), np.repeat(weights / lengths, lengths)
        counted = self.bins[column.name].count(encoded.to_numpy(), weights)
        self.counts[column.name] = self.counts.get(column.name, 0) + counted

    def independent(self, column: Categorical | Dense) -> float:
        """Returns the number of independent requests that a column is counted in."""
        clusters = self.item_clusters if column.side == "item" else self.clusters
        return independent_rows(np.concatenate([np.zeros(0, np.int64), *clusters]))

    def sample(self, column: Categorical | Dense) -> Sample:
        """Returns the values of a column by bin."""
        return Sample.of(self.counts[column.name], self.independent(column))

    def missing_rate(self, column: Categorical | Dense) -> float:
        """Returns the share of missing values of a column."""
        return self.missing[column.name] / self.counts[column.name].sum()
