"""The passes over the rows of one preparation; each runs functions of Arrow tables in the tasks of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from recsys_ray.columns import ROW_HASH, SPLIT_COLUMN
from recsys_ray.data.blocks.packing import pack_rows
from recsys_ray.data.blocks.parts import CommitReport, PartWriter
from recsys_ray.data.dataset.tables import item_columns
from recsys_ray.data.engines.base import Engine
from recsys_ray.data.prepare.catalogue import distinct_items, merge_items
from recsys_ray.data.prepare.leave_one_out import HeldOutRows, LatestRows, latest_rows
from recsys_ray.data.prepare.profile import Profile, profile_batch
from recsys_ray.data.prepare.splits import RowRules
from recsys_ray.data.prepare.statistics import (
    NO_COUNTS,
    BatchStatistics,
    KeptStatistics,
    Statistics,
    complete_statistics,
    measure_batch,
    needs_statistics,
)
from recsys_ray.data.sources.source import Source
from recsys_ray.data.sources.table import PassInput
from recsys_ray.data.transform import transform
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.schema import Categorical


@dataclass(frozen=True)
class Passes:
    """The passes of one preparation: what they read, the rules for its rows, and the engine that runs them."""

    engine: Engine
    source: Source
    rules: RowRules

    def profile(self) -> Profile:
        """Returns the profile of all rows."""
        rules = self.rules

        def profiled(batch: pa.Table) -> Profile:
            return profile_batch(batch, rules.schema, rules.faults(batch))

        return self.engine.reduce(self._rows(), profiled, Profile.merge)

    def held_out(self) -> HeldOutRows:
        """Returns the rows that the leave-one-out split takes from training."""
        rules = self.rules

        def latest(batch: pa.Table) -> LatestRows:
            return latest_rows(rules.good_rows(batch), rules.schema)

        return self.engine.reduce(self._rows(), latest, LatestRows.merge).held_out()

    def statistics(self, kept: KeptStatistics) -> Statistics:
        """Returns the statistics of good training rows, with what is kept of an earlier dataset.

        Reads nothing when the schema needs no statistics.
        """
        rules = self.rules
        if not needs_statistics(rules.schema):
            return Statistics(rules.schema, {}, NO_COUNTS)

        def measured(batch: pa.Table) -> BatchStatistics:
            return measure_batch(rules.training_rows(batch), rules.schema)

        return complete_statistics(rules.schema, self.engine.reduce(self._rows(), measured, BatchStatistics.merge), kept)

    def items(self, key: Categorical) -> pa.Table:
        """Returns the items of the good rows, with their raw columns."""
        rules, names = self.rules, item_columns(self.rules.schema)

        def found(batch: pa.Table) -> pa.Table:
            return distinct_items(rules.good_rows(batch), names, key)

        items = self.engine.reduce(self._rows(), found, partial(merge_items, key))
        return items.drop_columns([ROW_HASH])

    def write_blocks(self, statistics: Statistics, writer: PartWriter) -> CommitReport:
        """Transforms the good rows, shuffles them globally and writes them as row blocks of their split."""
        rules, schema = self.rules, statistics.schema
        lookups = self.engine.broadcast(build_lookups(statistics.vocabularies))

        def encode(batch: pa.Table) -> pa.Table:
            batch = rules.good_rows(batch)
            encoded = pack_rows(transform(batch, schema, lookups()), writer.columns)
            encoded = encoded.append_column(SPLIT_COLUMN, pa.array(rules.splits(batch), pa.uint8()))
            return encoded.append_column(ROW_HASH, batch[ROW_HASH])

        writer.start()
        return writer.commit(self.engine.write_parts(self._rows(), encode, writer, rules.seed))

    def write_bad_rows(self, folder: Path) -> None:
        """Writes the bad rows as Parquet, with all columns of the source and the reason."""
        rules = self.rules

        def keep_bad(batch: pa.Table) -> pa.Table:
            reasons = rules.faults(batch)
            bad = reasons != None  # noqa: E711
            kept = batch.filter(pa.array(bad)).drop_columns([ROW_HASH])
            return kept.append_column("reason", pa.array(reasons[bad].tolist(), pa.string()))

        rows = self.source.pass_input(self.source.arrow_schema.names, self.engine.broadcast)
        self.engine.write_parquet(rows, keep_bad, folder)

    def _rows(self) -> PassInput:
        return self.source.pass_input(self.rules.columns, self.engine.broadcast)
