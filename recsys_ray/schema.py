"""Columns and their kinds: the contract between raw tables, the dataset directory and the models.

A schema lists columns of five kinds (label, dense, categorical, weight, timestamp). It is written by hand or inferred from
Parquet types (`infer_schema`), completed by preparation (vocabulary sizes, means) and stored as `schema.json` at the root of
every dataset directory, so that training needs no column flags. Row 0 of every embedding table means "missing or never seen".
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

Side = Literal["user", "item", "context"]


@dataclass(frozen=True)
class Label:
    """What the model predicts: 0 or 1. With `positive_above`, any number, 1 where it is greater (rating > 3)."""

    name: str
    positive_above: float | None = None


@dataclass(frozen=True)
class Dense:
    """A float. A missing value (null or NaN) becomes `fill` after scaling, so 0 is the mean of a standardised column.

    log1p is sign(x) * log(1 + |x|); standard is (x - mean) / std, with `mean` and `std` measured on training rows.
    """

    name: str
    side: Side = "context"
    scale: Literal["none", "log1p", "standard"] = "none"
    fill: float = 0.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Categorical:
    """One id, or with `multi` a list of ids, that select rows of an embedding table.

    hash: any value, hashed into rows 1 to num_embeddings - 1. vocabulary: the values of training rows seen at least
    `min_frequency` times, most frequent first, at most num_embeddings - 1 of them (0: no limit; preparation writes the
    size found). identity: value v selects row v + 1, for 0 <= v < num_embeddings - 1. Columns naming one `table` share it.
    """

    name: str
    side: Side = "context"
    dtype: Literal["int", "string"] = "int"
    encoding: Literal["hash", "vocabulary", "identity"] = "hash"
    num_embeddings: int = 0
    multi: bool = False
    table: str = ""
    min_frequency: int = 1

    @property
    def table_name(self) -> str:
        return self.table or self.name


@dataclass(frozen=True)
class Weight:
    """How much a row counts in the loss and the metrics: a finite float, not negative."""

    name: str


@dataclass(frozen=True)
class Timestamp:
    """When the row happened: an Arrow timestamp or an integer; stored as int64 (seconds for Arrow timestamps)."""

    name: str


Column = Label | Dense | Categorical | Weight | Timestamp
KINDS = {"label": Label, "dense": Dense, "categorical": Categorical, "weight": Weight, "timestamp": Timestamp}


@dataclass(frozen=True)
class Schema:
    """All columns of a dataset, in order. Raises ValueError where they contradict one another."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        _check_names(self)
        for table, columns in self.tables.items():
            _check_table(table, columns)

    @property
    def label(self) -> Label:
        return next(column for column in self.columns if isinstance(column, Label))

    @property
    def dense(self) -> tuple[Dense, ...]:
        return tuple(column for column in self.columns if isinstance(column, Dense))

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        return tuple(column for column in self.columns if isinstance(column, Categorical))

    @property
    def weight(self) -> Weight | None:
        return next((column for column in self.columns if isinstance(column, Weight)), None)

    @property
    def timestamp(self) -> Timestamp | None:
        return next((column for column in self.columns if isinstance(column, Timestamp)), None)

    @property
    def tables(self) -> dict[str, list[Categorical]]:
        """Embedding table name -> the columns that share it."""
        tables: dict[str, list[Categorical]] = {}
        for column in self.categorical:
            tables.setdefault(column.table_name, []).append(column)
        return tables

    def to_json(self) -> str:
        """One column a line, so that a person can edit it and a diff reads well."""
        kind_of = {kind: name for name, kind in KINDS.items()}
        lines = (json.dumps({"kind": kind_of[type(column)], **dataclasses.asdict(column)}) for column in self.columns)
        return '{"columns": [\n  ' + ",\n  ".join(lines) + "\n]}\n"

    @staticmethod
    def from_json(text: str, origin: str = "schema.json") -> Schema:
        """Raises ValueError naming the column, or `origin` (the file), at fault."""
        try:
            entries = json.loads(text)["columns"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{origin} is not a schema: it wants {{"columns": [...]}} ({error!r})') from error
        return Schema(tuple(_column_from(entry, origin) for entry in entries))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Schema:
        return Schema.from_json(Path(path).read_text(), str(path))


def _column_from(entry: dict[str, Any], origin: str) -> Column:
    fields = dict(entry)
    kind = KINDS.get(fields.pop("kind", ""))
    if kind is None:
        raise ValueError(f"{origin}: column {entry.get('name')!r}: kind must be one of {', '.join(KINDS)}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{origin}: column {entry.get('name')!r}: {error}") from error


def _check_names(schema: Schema) -> None:
    repeated = [name for name, count in Counter(column.name for column in schema.columns).items() if count > 1]
    if repeated:
        raise ValueError(f"schema: column {repeated[0]!r} appears more than once")
    for kind, least in ((Label, 1), (Weight, 0), (Timestamp, 0)):
        found = [column.name for column in schema.columns if isinstance(column, kind)]
        if not least <= len(found) <= 1:
            raise ValueError(f"schema: {kind.__name__.lower()} columns found: {found}; wants {'one' if least else 'at most one'}")
    if not schema.categorical:
        raise ValueError("schema: no categorical column, so there is nothing to embed")


def _check_table(table: str, columns: list[Categorical]) -> None:
    first = columns[0]
    for column in columns:
        if column.num_embeddings < 2 and not (column.encoding == "vocabulary" and column.num_embeddings == 0):
            raise ValueError(f"schema: column {column.name!r}: num_embeddings is {column.num_embeddings}; wants 2 or more")
        if column.encoding == "identity" and column.dtype != "int":
            raise ValueError(f"schema: column {column.name!r}: encoding identity wants dtype int; use hash or vocabulary")
        for field in ("encoding", "num_embeddings", "dtype", "min_frequency"):
            if getattr(column, field) != getattr(first, field):
                raise ValueError(
                    f"schema: columns {first.name!r} and {column.name!r} share table {table!r} but differ in {field}"
                )


LABEL_NAMES = ("label", "click", "clicked", "target", "rating")
INFERRED_HASH_ROWS = 1 << 18


def infer_schema(table: pa.Schema, label: str = "") -> Schema:
    """A first schema from Arrow types, meant to be read and edited: float -> dense standardised, integer -> hash, string ->
    vocabulary, list -> multi-valued, timestamp -> timestamp; the side from a name's user/item prefix.

    Raises ValueError naming a column whose type cannot be used, or when no label can be found.
    """
    label = label or next((name for name in LABEL_NAMES if name in table.names), "")
    if label not in table.names:
        raise ValueError(f"no label column among {table.names}: name it with --label")
    columns: list[Column] = [Label(label, positive_above=3.0 if label == "rating" else None)]
    for field in table:
        if field.name != label:
            columns.append(_infer_column(field))
    return Schema(tuple(columns))


def _infer_column(field: pa.Field) -> Column:
    side: Side = "user" if field.name.startswith("user") else "item" if field.name.startswith("item") else "context"
    multi = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    value = field.type.value_type if multi else field.type
    if pa.types.is_dictionary(value):
        value = value.value_type
    if pa.types.is_timestamp(value) or pa.types.is_date(value):
        return Timestamp(field.name)
    if (pa.types.is_floating(value) or pa.types.is_decimal(value)) and not multi:
        return Dense(field.name, side, scale="standard")
    if pa.types.is_integer(value) or pa.types.is_boolean(value):
        return Categorical(field.name, side, "int", "hash", INFERRED_HASH_ROWS, multi)
    if pa.types.is_string(value) or pa.types.is_large_string(value):
        return Categorical(field.name, side, "string", "vocabulary", 0, multi)
    raise ValueError(f"column {field.name!r} has type {field.type}, which no kind of column takes: cast or drop it")
