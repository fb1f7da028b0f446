"""What training needs to know of the training rows: means and deviations of standardised columns, vocabularies, and how often
each item was chosen. Batches of rows report partial results, which are merged: the driver must hold the distinct values. What the
dataset that this one grows from has measured stays as it was, so that weights trained on it still fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.prepare.exact_sums import Moments, moments_of
from recsys_ray.data.prepare.profile import PerRow
from recsys_ray.data.transform import Vocabularies, canonical, positives, unscaled, value_hashes
from recsys_ray.schema import Categorical, Column, Dense, Schema

COMPACT_ROWS = 1 << 22
NO_COUNTS = pa.schema({"table": pa.string(), "value": pa.string(), "frequency": pa.int64()}).empty_table()
ITEMS = ""
"""Under this name, which no table has, `counts` holds the frequencies of items."""
Tables = dict[str, list[Categorical]]
Scales = dict[str, tuple[float, float]]
"""Mean and deviation of standardised columns."""
UNMEASURED = (0.0, 1.0)
"""Those of a column that had no value, or only zeros: nothing worth keeping."""


@dataclass(frozen=True)
class Fitted:
    schema: Schema
    """With means, deviations and vocabulary sizes."""
    vocabularies: Vocabularies
    item_frequencies: pa.Table
    """value (as text) and frequency of the item key's values among positive training rows; empty where it has none."""


@dataclass(frozen=True)
class Earlier:
    """What is kept of the dataset that this one grows from."""

    vocabularies: Vocabularies
    scales: Scales
    path: str = ""
    fingerprint: str | None = None

    @staticmethod
    def open(path: str, schema: Schema) -> Earlier:
        """Raises FileNotFoundError where `path` is no dataset directory, ValueError where a value would lose its row in it."""
        old = DatasetDirectory.open(path)
        tables = {name: (new[0], old.schema.tables[name][0]) for name, new in schema.tables.items() if name in old.schema.tables}
        for name, (new, before) in tables.items():
            _check_same_rows(name, new, before, path)
        loaded = load_vocabularies(old.root, old.schema)
        vocabularies = {name: values for name, values in loaded.items() if name in tables}
        for name, values in vocabularies.items():
            _check_room(name, len(values), *tables[name], path)
        standard, measured = {column.name for column in _standard(schema)}, _standard(old.schema)
        scales = {one.name: (one.mean, one.std) for one in measured if one.name in standard and (one.mean, one.std) != UNMEASURED}
        return Earlier(vocabularies, scales, str(Path(path).absolute()), old.summary.get("fingerprint"))

    @property
    def stamp(self) -> str:
        """Changes when what is kept does, wherever it lies."""
        digest = hashlib.sha256(json.dumps(self.scales, sort_keys=True).encode())
        for name, values in sorted(self.vocabularies.items()):
            digest.update(name.encode() + value_hashes(values).tobytes())
        return digest.hexdigest()


NOTHING = Earlier({}, {})


@dataclass(frozen=True)
class Measured:
    """Mergeable facts about a set of training rows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    counts: pa.Table = field(default_factory=lambda: NO_COUNTS)
    """Columns table, value (as text) and frequency; a value may be there more than once."""
    compacted: int = 0
    """How many rows `counts` had when each value was last there once."""

    def merge(self, other: Measured) -> Measured:
        names = self.moments.keys() | other.moments.keys()
        moments = {name: self.moments.get(name, Moments()) + other.moments.get(name, Moments()) for name in names}
        counts = pa.concat_tables([self.counts, other.counts])
        if counts.num_rows <= max(COMPACT_ROWS, 2 * self.compacted):
            return Measured(moments, counts, self.compacted)
        counts = _compacted(counts)
        return Measured(moments, counts, counts.num_rows)


def wants_fitting(schema: Schema) -> bool:
    return bool(_standard(schema) or _tables(schema) or schema.key("item"))


def measure(batch: pa.Table, schema: Schema, faults: PerRow, split_of: PerRow) -> Measured:
    """Of the good training rows in the batch."""
    batch = batch.filter(pa.array(faults(batch) == None))  # noqa: E711
    batch = batch.filter(pa.array(split_of(batch) == 0))
    counts = [_value_counts(batch, _tables(schema))]
    if item := schema.key("item"):
        counts.append(_value_counts(batch.filter(pa.array(positives(batch, schema))), {ITEMS: [item]}))
    moments = {column.name: _moments(column, batch[column.name]) for column in _standard(schema)}
    return Measured(moments, pa.concat_tables(counts))


def completed(schema: Schema, measured: Measured, earlier: Earlier) -> Fitted:
    counts, old = _compacted(measured.counts), earlier.vocabularies
    vocabularies = {name: _vocabulary(counts, name, columns[0], old.get(name)) for name, columns in _tables(schema).items()}
    # Kept, not measured anew: to weights trained on the earlier dataset the same raw value must remain the same number.
    scales = {name: (found.mean, found.std or 1.0) for name, found in measured.moments.items()} | earlier.scales
    columns = tuple(_completed(column, scales, vocabularies) for column in schema.columns)
    items = counts.filter(pc.field("table") == ITEMS).select(["value", "frequency"])
    return Fitted(Schema(columns), vocabularies, items)


def _standard(schema: Schema) -> list[Dense]:
    return [column for column in schema.dense if column.scale == "standard"]


def _tables(schema: Schema) -> Tables:
    return {name: columns for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"}


def _check_same_rows(name: str, new: Categorical, old: Categorical, path: str) -> None:
    """A hash finds its row by the size of the table, so that must not change either."""
    for setting in ("encoding", "dtype", *(("num_embeddings",) if new.encoding == "hash" else ())):
        if (ours := getattr(new, setting)) != (theirs := getattr(old, setting)):
            raise ValueError(
                f"table {name!r}: {setting} is {ours!r} in the schema but {theirs!r} in --grow-from {path}, so its values would "
                f'change rows: make the schema agree, or start anew under another name ("table": "{name}_2")'
            )


def _check_room(name: str, values: int, new: Categorical, old: Categorical, path: str) -> None:
    if _rows(values) != old.num_embeddings:
        raise ValueError(
            f"table {name!r}: --grow-from {path} has a vocabulary of {values} values, but num_embeddings {old.num_embeddings} "
            "in its schema.json, so they do not belong together: prepare that dataset again"
        )
    if new.num_embeddings and values >= new.num_embeddings:
        raise ValueError(
            f"table {name!r}: num_embeddings {new.num_embeddings} in the schema leaves room for {new.num_embeddings - 1} values, "
            f"but --grow-from {path} has {values} and drops none: say {values + 1} or more, or 0 for no limit"
        )


def _rows(values: int) -> int:
    return max(values + 1, 2)


def _completed(column: Column, scales: Scales, vocabularies: Vocabularies) -> Column:
    if isinstance(column, Categorical) and column.table_name in vocabularies:
        return dataclasses.replace(column, num_embeddings=_rows(len(vocabularies[column.table_name])))
    if isinstance(column, Dense) and column.name in scales:
        return dataclasses.replace(column, mean=scales[column.name][0], std=scales[column.name][1])
    return column


def _moments(column: Dense, values: pa.ChunkedArray) -> Moments:
    numbers = unscaled(column, values.combine_chunks())
    return moments_of(numbers[~np.isnan(numbers)])


def _value_counts(batch: pa.Table, tables: Tables) -> pa.Table:
    """Columns table, value (as text) and frequency."""
    parts = [NO_COUNTS]
    for table, columns in tables.items():
        for column in columns:
            values = batch[column.name].combine_chunks()
            values = canonical(column, values.flatten() if column.multi else values).drop_null()
            counts = pc.value_counts(values)
            named, text = pa.array([table] * len(counts), pa.string()), counts.field("values").cast(pa.string())
            parts.append(pa.table({"table": named, "value": text, "frequency": counts.field("counts")}))
    return pa.concat_tables(parts)


def _compacted(counts: pa.Table) -> pa.Table:
    summed = counts.group_by(["table", "value"]).aggregate([("frequency", "sum")])
    return summed.rename_columns({"frequency_sum": "frequency"}).select(counts.column_names)


def _vocabulary(counts: pa.Table, name: str, column: Categorical, old: pa.Array | None = None) -> pa.Array:
    """The old, then what is seen at least min_frequency times, most frequent first; equally frequent ones in their own order."""
    frequent = counts.filter((pc.field("table") == name) & (pc.field("frequency") >= column.min_frequency))
    dtype = pa.int64() if column.dtype == "int" else pa.string()
    found = pa.table({"value": frequent["value"].cast(dtype), "frequency": frequent["frequency"]})
    old = pa.array([], dtype) if old is None else old
    new = found.filter(pc.invert(pc.is_in(found["value"], value_set=old)))
    ordered = new.sort_by([("frequency", "descending"), ("value", "ascending")])
    limit = column.num_embeddings - 1 - len(old) if column.num_embeddings else len(ordered)
    return pa.concat_arrays([old, ordered["value"].combine_chunks()[:limit]])
