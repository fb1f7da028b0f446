"""The inference of a first schema from the Arrow types of a table, for a person to read and edit."""

from __future__ import annotations

import pyarrow as pa

from recsys_ray.data.sources.column_types import is_list, is_number, is_text, is_time, is_whole_number, value_type
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Side, Timestamp

LABEL_NAMES = ("label", "click", "clicked", "target", "rating")
NO_LABEL = "none"
"""The value of `--label` for a table without a label, in which every row is a positive example."""
KEYS = ("user_id", "item_id")
INFERRED_HASH_ROWS = 1 << 18
"""The number of embeddings of a hashed column, until somebody edits it."""


def infer_schema(table: pa.Schema, label: str = "") -> Schema:
    """Returns a schema with a kind for each column by its type.

    Floats become dense and standardised, integers hashed ids, strings ids with a vocabulary, lists multi-valued ids, and the
    first timestamp the timestamp column. The side comes from a prefix user or item of the name; user_id and item_id are keys.
    Columns that no kind takes are left out: structs, bytes, columns of nulls, a second timestamp.

    `label` names the label; when empty it is the first of LABEL_NAMES in the table, and NO_LABEL stands for none.
    Raises ValueError when no label can be found.
    """
    label = _label_name(table, label)
    columns: list[Column] = []
    if label != NO_LABEL:
        columns.append(Label(label, positive_above=3.0 if label == "rating" else None))
    for field in table:
        column = None if field.name == label else _infer_column(field)
        if column and not (isinstance(column, Timestamp) and any(isinstance(one, Timestamp) for one in columns)):
            columns.append(column)
    return Schema(tuple(columns))


def _label_name(table: pa.Schema, label: str) -> str:
    if label not in ("", NO_LABEL, *table.names):
        raise ValueError(f"--label {label!r} is not a column: the table has {', '.join(table.names)}")
    label = label or next((name for name in LABEL_NAMES if name in table.names), "")
    if not label:
        raise ValueError(
            f"no column is called {', '.join(LABEL_NAMES)}: name the label with --label ({', '.join(table.names)}), or say "
            f"--label {NO_LABEL} where every row is a positive one"
        )
    return label


def _infer_column(field: pa.Field) -> Column | None:
    side: Side = "user" if field.name.startswith("user") else "item" if field.name.startswith("item") else "context"
    multi = is_list(field.type)
    value = value_type(field.type.value_type if multi else field.type)
    if is_time(value) and not multi:
        return Timestamp(field.name)
    if field.name in KEYS and not multi and (is_whole_number(value) or is_text(value)):
        return Categorical(field.name, side, "int" if is_whole_number(value) else "string", "vocabulary", key=True)
    if is_whole_number(value):
        return Categorical(field.name, side, "int", "hash", INFERRED_HASH_ROWS, multi)
    if is_number(value) and not multi:
        return Dense(field.name, side, scale="standard")
    if is_text(value):
        return Categorical(field.name, side, "string", "vocabulary", 0, multi)
    return None
