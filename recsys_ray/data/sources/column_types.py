"""Arrow types and column kinds: a first schema from a table's types, and a check that a table fits a schema."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Side, Timestamp, Weight

LABEL_NAMES = ("label", "click", "clicked", "target", "rating")
NO_LABEL = "none"
KEYS = ("user_id", "item_id")
INFERRED_HASH_ROWS = 1 << 18


def infer_schema(table: pa.Schema, label: str = "") -> Schema:
    """A first schema, meant to be read and edited: float -> dense standardised, integer -> hash, string -> vocabulary,
    list -> multi-valued, the first timestamp -> timestamp; the side from a name's user/item prefix; user_id and item_id are keys.
    `label` NO_LABEL: none, every row is a positive one.

    Columns that no kind takes (structs, bytes, nothing but nulls, a second timestamp) are left out.
    Raises ValueError when no label can be found.
    """
    if label not in ("", NO_LABEL, *table.names):
        raise ValueError(f"--label {label!r} is not a column: the table has {', '.join(table.names)}")
    label = label or next((name for name in LABEL_NAMES if name in table.names), "")
    if not label:
        raise ValueError(
            f"no column is called {', '.join(LABEL_NAMES)}: name the label with --label ({', '.join(table.names)}), or say "
            f"--label {NO_LABEL} where every row is a positive one"
        )
    columns: list[Column] = []
    if label != NO_LABEL:
        columns.append(Label(label, positive_above=3.0 if label == "rating" else None))
    for field in table:
        column = None if field.name == label else _infer_column(field)
        if column and not (isinstance(column, Timestamp) and any(isinstance(one, Timestamp) for one in columns)):
            columns.append(column)
    return Schema(tuple(columns))


def _infer_column(field: pa.Field) -> Column | None:
    side: Side = "user" if field.name.startswith("user") else "item" if field.name.startswith("item") else "context"
    multi = _is_list(field.type)
    value = _value(field.type.value_type if multi else field.type)
    if _is_moment(value) and not multi:
        return Timestamp(field.name)
    if field.name in KEYS and not multi and (_is_whole(value) or is_text(value)):
        return Categorical(field.name, side, "int" if _is_whole(value) else "string", "vocabulary", key=True)
    if _is_whole(value):
        return Categorical(field.name, side, "int", "hash", INFERRED_HASH_ROWS, multi)
    if _is_number(value) and not multi:
        return Dense(field.name, side, scale="standard")
    if is_text(value):
        return Categorical(field.name, side, "string", "vocabulary", 0, multi)
    return None


def check_columns(schema: Schema, table: pa.Schema, origin: str) -> None:
    """Raises ValueError naming a column of `schema` that `origin` lacks or holds in a type its kind cannot take."""
    for column in schema.columns:
        if column.name not in table.names:
            raise ValueError(f"column {column.name!r} of the schema is not in {origin}, which has: {', '.join(table.names)}")
        found = table.field(column.name).type
        wanted, accepts = _accepted(column)
        if not accepts(found):
            kind = type(column).__name__.lower()
            raise ValueError(f"column {column.name!r} in {origin} has type {found}, but a {kind} column must be {wanted}: "
                             f"{_remedy(column, found)}")  # fmt: skip


def _accepted(column: Column) -> tuple[str, Callable[[pa.DataType], bool]]:
    match column:
        case Label() | Dense() | Weight():
            return "a number or boolean", _is_number
        case Timestamp():
            return "a timestamp, date or integer", lambda kind: _is_moment(kind) or pa.types.is_integer(kind)
        case Categorical(multi=True):
            one, accepts = _accepted(Categorical(column.name, dtype=column.dtype))
            return f"a list (multi), each value {one}", lambda kind: _is_list(kind) and accepts(kind.value_type)
        case Categorical(dtype="int"):
            return "a whole number (dtype int)", lambda kind: _is_number(_value(kind))
        case Categorical():
            return "a string (dtype string)", lambda kind: is_text(kind)


def _remedy(column: Column, found: pa.DataType) -> str:
    if pa.types.is_null(found):
        return "every value is null, so leave it out of the schema, or write it with its real type"
    if not isinstance(column, Categorical):
        return "cast it when you write the Parquet, or change its kind in the schema"
    value = _value(found.value_type if _is_list(found) else found)
    if not (is_text(value) or _is_number(value)):
        return "cast it when you write the Parquet, or leave it out of the schema"
    if _is_list(found) != column.multi:
        return f'say "multi": {"false" if column.multi else "true"} in the schema'
    return f'cast it when you write the Parquet, or say "dtype": "{"string" if is_text(value) else "int"}" in the schema'


def check_key(key: str, left: pa.Schema, left_origin: str, right: pa.Schema, right_origin: str) -> None:
    """Raises ValueError unless both tables have the join key `key`, as text in both or as numbers in both."""
    for table, origin in ((left, left_origin), (right, right_origin)):
        if key not in table.names:
            raise ValueError(f"join key {key!r} is not a column of {origin}, which has: {', '.join(table.names)}")
        kind = table.field(key).type
        if not (is_text(kind) or _is_number(_value(kind))):
            raise ValueError(f"join key {key!r} of {origin} has type {kind}: wants a string or a whole number")
    ours, theirs = left.field(key).type, right.field(key).type
    if is_text(ours) != is_text(theirs):
        raise ValueError(f"join key {key!r} has type {ours} in {left_origin} but {theirs} in {right_origin}: cast one")


def _value(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    t = pa.types
    return any(is_a(kind) for is_a in (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view))


def is_text(kind: pa.DataType) -> bool:
    kind = _value(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_whole(kind: pa.DataType) -> bool:
    """Databases export whole numbers as decimals of scale 0."""
    whole_decimal = pa.types.is_decimal(kind) and kind.scale == 0
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or whole_decimal


def _is_number(kind: pa.DataType) -> bool:
    return _is_whole(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_moment(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)
