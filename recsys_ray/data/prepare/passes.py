"""The passes over the rows of one preparation. Each is a pure function of Arrow tables, run by the engine in its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from recsys_ray.columns import ROW_HASH, SPLIT_COLUMN
from recsys_ray.data.blocks.parts import PartWriter, Written
from recsys_ray.data.blocks.records import packed
from recsys_ray.data.engines.base import Engine
from recsys_ray.data.prepare.catalogue import item_columns, items_of, merged_items
from recsys_ray.data.prepare.leave_one_out import HeldOut, LatestRows, latest_rows
from recsys_ray.data.prepare.profile import PerRow, Profile, profile_batch
from recsys_ray.data.prepare.splits import RowRules
from recsys_ray.data.prepare.statistics import NO_COUNTS, Earlier, Fitted, Measured, completed, measure, wants_fitting
from recsys_ray.data.sources.source import Rows, Source
from recsys_ray.data.transform import transform
from recsys_ray.schema import Categorical


@dataclass(frozen=True)
class Passes:
    engine: Engine
    source: Source
    rules: RowRules

    def profile(self) -> Profile:
        profile = partial(profile_batch, schema=self.rules.schema, faults=self.rules.faults)
        return self.engine.reduce(self._rows(), profile, Profile.merge)

    def held_out(self) -> HeldOut:
        """The rows that the leave-one-out split takes from training."""
        latest = partial(latest_rows, schema=self.rules.schema, faults=self.rules.faults)
        return self.engine.reduce(self._rows(), latest, LatestRows.merge).held_out()

    def fit(self, earlier: Earlier) -> Fitted:
        """Of good training rows alone, and what is kept of `earlier`. No pass where the schema asks for nothing to measure."""
        if not wants_fitting(self.rules.schema):
            return Fitted(self.rules.schema, {}, NO_COUNTS)
        fit = partial(measure, schema=self.rules.schema, faults=self.rules.faults, split_of=self.rules.splits)
        return completed(self.rules.schema, self.engine.reduce(self._rows(), fit, Measured.merge), earlier)

    def items(self, key: Categorical) -> pa.Table:
        """The items of the good rows, with their columns."""
        names, faults = item_columns(self.rules.schema), self.rules.faults

        def found(batch: pa.Table) -> pa.Table:
            return items_of(_good(batch, faults), names, key)

        items = self.engine.reduce(self._rows(), found, partial(merged_items, key))
        return items.drop_columns([ROW_HASH])

    def write_blocks(self, fitted: Fitted, writer: PartWriter) -> Written:
        rules, schema, known = self.rules, fitted.schema, self.engine.share(fitted.vocabularies)

        def encode(batch: pa.Table) -> pa.Table:
            batch = _good(batch, rules.faults)
            encoded = packed(transform(batch, schema, known()), writer.columns)
            encoded = encoded.append_column(SPLIT_COLUMN, pa.array(rules.splits(batch), pa.uint8()))
            return encoded.append_column(ROW_HASH, batch[ROW_HASH])

        writer.start()
        return writer.commit(self.engine.write_parts(self._rows(), encode, writer, rules.seed))

    def set_bad_rows_aside(self, folder: Path) -> None:
        faults = self.rules.faults

        def keep_bad(batch: pa.Table) -> pa.Table:
            reasons = faults(batch)
            bad = reasons != None  # noqa: E711
            kept = batch.filter(pa.array(bad)).drop_columns([ROW_HASH])
            return kept.append_column("reason", pa.array(reasons[bad].tolist(), pa.string()))

        rows = self.source.rows(self.source.arrow_schema.names, self.engine.share)
        self.engine.write_parquet(rows, keep_bad, folder)

    def _rows(self) -> Rows:
        return self.source.rows(self.rules.columns, self.engine.share)


def _good(batch: pa.Table, faults: PerRow) -> pa.Table:
    good = faults(batch) == None  # noqa: E711
    return batch if good.all() else batch.filter(pa.array(good))
