"""Arrow types: what they hold, and checks that a table fits a schema and a join before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa

from recsys_ray.schema import Categorical, Column, Dense, Label, Timestamp, Weight


def check_columns(columns: Iterable[Column], table: pa.Schema, origin: str) -> None:
    """Raises ValueError naming a column of a schema that `origin` lacks or holds in a type that its kind does not take."""
    for column in columns:
        if column.name not in table.names:
            raise ValueError(f"column {column.name!r} of the schema is not in {origin}, which has: {', '.join(table.names)}")
        found = table.field(column.name).type
        wanted, accepts = _accepted(column)
        if not accepts(found):
            kind = type(column).__name__.lower()
            raise ValueError(f"column {column.name!r} in {origin} has type {found}, but a {kind} column must be {wanted}: "
                             f"{_remedy(column, found)}")  # fmt: skip


class TableColumns(NamedTuple):
    """The columns of a table, and where the table comes from, for error messages."""

    arrow_schema: pa.Schema
    origin: str


def check_join_key(key: str, left: TableColumns, right: TableColumns) -> None:
    """Raises ValueError unless both tables have the join key `key`, as text in both or as numbers in both."""
    for table, origin in (left, right):
        if key not in table.names:
            raise ValueError(f"join key {key!r} is not a column of {origin}, which has: {', '.join(table.names)}")
        kind = table.field(key).type
        if not (is_text(kind) or is_number(value_type(kind))):
            raise ValueError(f"join key {key!r} of {origin} has type {kind}: wants a string or a whole number")
    ours, theirs = (table.field(key).type for table, _ in (left, right))
    if is_text(ours) != is_text(theirs):
        raise ValueError(f"join key {key!r} has type {ours} in {left.origin} but {theirs} in {right.origin}: cast one")


def value_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the values of a dictionary type, and any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a column of this type can be multi-valued."""
    t = pa.types
    return any(is_a(kind) for is_a in (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view))


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column of this type, or of a dictionary of it, holds strings."""
    kind = value_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_whole_number(kind: pa.DataType) -> bool:
    """Returns whether the type is an integer, a boolean or a decimal of scale 0, as which databases export whole numbers."""
    whole_decimal = pa.types.is_decimal(kind) and kind.scale == 0
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or whole_decimal


def is_number(kind: pa.DataType) -> bool:
    """Returns whether the type is any kind of number or boolean."""
    return is_whole_number(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_time(kind: pa.DataType) -> bool:
    """Returns whether the type is a timestamp or a date."""
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


class _Accepted(NamedTuple):
    described: str
    """The accepted types in words."""
    accepts: Callable[[pa.DataType], bool]


def _accepted(column: Column) -> _Accepted:
    match column:
        case Label() | Dense() | Weight():
            return _Accepted("a number or boolean", is_number)
        case Timestamp():
            return _Accepted("a timestamp, date or integer", lambda kind: is_time(kind) or pa.types.is_integer(kind))
        case Categorical(multi=True):
            one, accepts = _accepted(Categorical(column.name, dtype=column.dtype))
            return _Accepted(f"a list (multi), each value {one}", lambda kind: is_list(kind) and accepts(kind.value_type))
        case Categorical(dtype="int"):
            return _Accepted("a whole number (dtype int)", lambda kind: is_number(value_type(kind)))
        case Categorical():
            return _Accepted("a string (dtype string)", is_text)


def _remedy(column: Column, found: pa.DataType) -> str:
    if pa.types.is_null(found):
        return "every value is null, so leave it out of the schema, or write it with its real type"
    if not isinstance(column, Categorical):
        return "cast it when you write the Parquet, or change its kind in the schema"
    value = value_type(found.value_type if is_list(found) else found)
    if not (is_text(value) or is_number(value)):
        return "cast it when you write the Parquet, or leave it out of the schema"
    if is_list(found) != column.multi:
        return f'say "multi": {"false" if column.multi else "true"} in the schema'
    return f'cast it when you write the Parquet, or say "dtype": "{"string" if is_text(value) else "int"}" in the schema'
