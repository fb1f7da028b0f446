"""The schema of a dataset: its columns and their kinds, shared by raw tables, the dataset directory and the models.

Columns have one of five kinds: label, dense, categorical, weight and timestamp. Without a label every row counts as a positive
example, as in a log of purchases. A schema is written by hand or inferred from Parquet types
(data/prepare/schema_inference.py); preparation adds vocabulary sizes, means and standard deviations, and stores it as
`schema.json` at the root of the dataset directory, so that training needs no column flags. Row 0 of every embedding table stands
for a value that is missing or was never seen.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from recsys_ray.columns import LENGTHS, RESERVED

Side = Literal["user", "item", "context"]
QUERY_SIDES: tuple[Side, ...] = ("user", "context")


@dataclass(frozen=True)
class Label:
    """The column that the model predicts: 0 or 1, or with `positive_above` any number, which counts as 1 when it is greater."""

    name: str
    positive_above: float | None = None


@dataclass(frozen=True)
class Dense:
    """A numeric column, stored as float32.

    A missing value (null or NaN) becomes `fill` after scaling, so that a fill of 0 is the mean of a standardised column.
    Scale `log1p` is sign(x) * log(1 + |x|); `standard` is (x - mean) / std, with `mean` and `std` measured on training rows.
    """

    name: str
    side: Side = "context"
    scale: Literal["none", "log1p", "standard"] = "none"
    fill: float = 0.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Categorical:
    """A column of ids that select rows of an embedding table: one id a row, or with `multi` a list of ids.

    `encoding` maps a value to a row of the table:
      hash: any value, hashed into rows 1 to num_embeddings - 1.
      vocabulary: the values of training rows seen at least `min_frequency` times, most frequent first, at most
        num_embeddings - 1 of them (0: no limit). Preparation replaces num_embeddings by the size it found.
      identity: value v selects row v + 1, for 0 <= v < num_embeddings - 1.
    Columns with the same `table` share an embedding table. `key` marks the id of the users or of the items, depending on `side`;
    retrieval needs both keys.
    """

    name: str
    side: Side = "context"
    dtype: Literal["int", "string"] = "int"
    encoding: Literal["hash", "vocabulary", "identity"] = "hash"
    num_embeddings: int = 0
    multi: bool = False
    table: str = ""
    min_frequency: int = 1
    key: bool = False

    @property
    def table_name(self) -> str:
        """The embedding table of this column: `table`, or the column's own name when that is empty."""
        return self.table or self.name


@dataclass(frozen=True)
class Weight:
    """The column with the weight of a row in the loss and the metrics: finite and not negative."""

    name: str


@dataclass(frozen=True)
class Timestamp:
    """The column with the time of a row: an Arrow timestamp or date, stored as int64 seconds, or an integer, stored as it is."""

    name: str


Column = Label | Dense | Categorical | Weight | Timestamp
KINDS = {"label": Label, "dense": Dense, "categorical": Categorical, "weight": Weight, "timestamp": Timestamp}


@dataclass(frozen=True)
class Schema:
    """The columns of a dataset, in order. Creating one raises ValueError when columns contradict each other."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        for column in self.columns:
            _check_fields(column)
        _check_names(self)
        for table, columns in self.tables.items():
            _check_table(table, columns)

    @property
    def features(self) -> tuple[Categorical | Dense, ...]:
        """The columns that models read: categorical ones first, then dense ones."""
        return (*self.categorical, *self.dense)

    def features_of(self, *sides: Side) -> list[Categorical | Dense]:
        """Returns the features that describe these sides, in the order of `features`."""
        return [column for column in self.features if column.side in sides]

    @property
    def label(self) -> Label | None:
        """The label column; None when every row is a positive example."""
        return next((column for column in self.columns if isinstance(column, Label)), None)

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The dense columns, in order."""
        return tuple(column for column in self.columns if isinstance(column, Dense))

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical columns, in order."""
        return tuple(column for column in self.columns if isinstance(column, Categorical))

    @property
    def weight(self) -> Weight | None:
        """The weight column, if any."""
        return next((column for column in self.columns if isinstance(column, Weight)), None)

    @property
    def timestamp(self) -> Timestamp | None:
        """The timestamp column, if any."""
        return next((column for column in self.columns if isinstance(column, Timestamp)), None)

    def key(self, side: Side) -> Categorical | None:
        """Returns the id column of the users or of the items, or None when the schema marks none."""
        return next((column for column in self.categorical if column.key and column.side == side), None)

    @property
    def tables(self) -> dict[str, list[Categorical]]:
        """The columns that share each embedding table, by table name."""
        tables: dict[str, list[Categorical]] = {}
        for column in self.categorical:
            tables.setdefault(column.table_name, []).append(column)
        return tables

    def to_json(self) -> str:
        """Returns the text of schema.json, with one column per line so that it is easy to edit and to diff."""
        kind_of = {kind: name for name, kind in KINDS.items()}
        lines = (json.dumps({"kind": kind_of[type(column)], **dataclasses.asdict(column)}) for column in self.columns)
        return '{"columns": [\n  ' + ",\n  ".join(lines) + "\n]}\n"

    @staticmethod
    def from_json(text: str, origin: str = "schema.json") -> Schema:
        """Parses the text of a schema file. Raises ValueError naming `origin` (the file) and the faulty column."""
        try:
            entries = json.loads(text)["columns"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{origin} is not a schema: it wants {{"columns": [...]}} ({error!r})') from error
        try:
            return Schema(tuple(_column_from(entry) for entry in entries))
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Schema:
        """Reads a schema file. Raises FileNotFoundError when it does not exist, ValueError as `from_json` does."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no schema file at {path}: write a first one with jobs/prepare_data.py --infer-schema {path}"
            )
        return Schema.from_json(Path(path).read_text(), str(path))


def _column_from(entry: Any) -> Column:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f'a column must be like {{"kind": "dense", "name": "price"}}, but one is {json.dumps(entry)}')
    fields = {name: value for name, value in entry.items() if name != "kind"}
    kind = KINDS.get(entry.get("kind", ""))
    if kind is None:
        raise ValueError(f"column {entry['name']!r}: kind is {entry.get('kind')!r}; wants one of {', '.join(KINDS)}")
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"column {entry['name']!r}: a {entry['kind']} has no {unknown[0]!r}, only {', '.join(known)}")
    return kind(**fields)


def _check_fields(column: Column) -> None:
    for name, wanted in get_type_hints(type(column)).items():
        value = getattr(column, name)
        if not _fits(value, wanted):
            choices = ", ".join(get_args(wanted)) if get_origin(wanted) is Literal else getattr(wanted, "__name__", wanted)
            raise ValueError(f"column {column.name!r}: {name} is {value!r}; wants {choices}")


def _fits(value: object, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is UnionType:
        return any(_fits(value, one) for one in get_args(wanted))
    return type(value) in ((int, float) if wanted is float else (wanted,))


def _check_names(schema: Schema) -> None:
    repeated = [name for name, count in Counter(column.name for column in schema.columns).items() if count > 1]
    if repeated:
        raise ValueError(f"column {repeated[0]!r} appears more than once")
    for name in (column.name for column in schema.columns):
        if not name or name in RESERVED or name.endswith(LENGTHS):
            raise ValueError(f"column {name!r} has a name, or the end of a name, that row blocks need for themselves: rename it")
    for kind in (Label, Weight, Timestamp):
        found = [column.name for column in schema.columns if isinstance(column, kind)]
        if len(found) > 1:
            raise ValueError(f"{kind.__name__.lower()} columns found: {found}; wants at most one")
    if not schema.categorical:
        raise ValueError("no categorical column, so there is nothing to embed")
    for key in (column for column in schema.categorical if column.key):
        _check_key(key, schema)


def _check_key(key: Categorical, schema: Schema) -> None:
    if key.multi or key.side == "context":
        raise ValueError(f"column {key.name!r}: a key holds one value a row and is on side user or item")
    if (other := schema.key(key.side)) is not key and other is not None:
        raise ValueError(f"columns {other.name!r} and {key.name!r} are both the key of side {key.side}; wants at most one")


def _check_table(table: str, columns: list[Categorical]) -> None:
    first = columns[0]
    for column in columns:
        sized = 2 <= column.num_embeddings < 2**31
        if not sized and not (column.encoding == "vocabulary" and column.num_embeddings == 0):
            raise ValueError(f"column {column.name!r}: num_embeddings is {column.num_embeddings}; wants 2 to {2**31 - 1}")
        if column.encoding == "identity" and column.dtype != "int":
            raise ValueError(f"column {column.name!r}: encoding identity wants dtype int; use hash or vocabulary")
        for field in ("encoding", "num_embeddings", "dtype", "min_frequency"):
            if getattr(column, field) != getattr(first, field):
                raise ValueError(f"columns {first.name!r} and {column.name!r} share table {table!r} but differ in {field}")
