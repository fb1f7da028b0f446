"""Conditions on items: evaluated on the catalogue in memory, or written as SQL for a vector index that has the columns itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.serving.app.deployments.tasks import Comparison

COMPARISONS: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def eligible_items(items: pa.Table, where: Sequence[Comparison]) -> np.ndarray:
    """Returns which items meet all conditions, bool [N]. Raises ValueError naming a condition that cannot be asked of them."""
    kept = np.ones(items.num_rows, bool)
    for comparison in where:
        values = checked_values(items.schema, comparison)
        kept &= _meets(items[comparison.column].combine_chunks(), comparison.op, values)
    return kept


def sql_condition(schema: pa.Schema, where: Sequence[Comparison]) -> str:
    """Returns the conditions as SQL, for `VectorIndex.search`. Raises ValueError as `eligible_items` does."""
    wanted = [checked_values(schema, comparison) for comparison in where]
    return " AND ".join(_sql(schema.field(one.column), one.op, values) for one, values in zip(where, wanted, strict=True))


def checked_values(schema: pa.Schema, comparison: Comparison) -> list[Any]:
    """Returns the values that a condition compares with. Raises ValueError unless they are of the column's type."""
    if comparison.column not in schema.names:
        raise ValueError(f"where: items have no column {comparison.column!r}, only {', '.join(schema.names)}")
    if (comparison.op == "in") != isinstance(comparison.value, list):
        raise ValueError(f"where: {comparison.column} {comparison.op}: a list goes with `in`, and a single value with the others")
    kind = schema.field(comparison.column).type
    if pa.types.is_nested(kind) and (comparison.op != "contains" or not pa.types.is_list(kind)):
        raise ValueError(f"where: {comparison.column} holds lists: ask by `contains`")
    values = comparison.value if isinstance(comparison.value, list) else [comparison.value]
    types = _comparable(kind.value_type if pa.types.is_list(kind) else kind, comparison.op, part_of=pa.types.is_list(kind))
    if not all(type(value) in types and value == value for value in values):  # NaN equals nothing
        raise ValueError(f"where: {comparison.column} holds {kind}, which cannot be asked {comparison.op} {comparison.value!r}")
    return values


def _comparable(kind: pa.DataType, op: str, *, part_of: bool) -> tuple[type, ...]:
    """Returns the types of the values that can be compared with one of `kind`, alone or part of a list; none where none can."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return (str,)
    if op == "contains" and not part_of:
        return ()
    if pa.types.is_integer(kind):
        return (int,)
    if pa.types.is_floating(kind):
        return (int, float)
    return (bool,) if pa.types.is_boolean(kind) and op in ("=", "!=", "in", "contains") else ()


def _meets(values: pa.Array, op: str, wanted: list[Any]) -> np.ndarray:
    match op:
        case "in":
            met = pc.and_(pc.is_in(values, value_set=pa.array(wanted, values.type)), values.is_valid())
        case "contains" if pa.types.is_list(values.type):
            found = pc.equal(pc.list_flatten(values), pa.scalar(wanted[0], values.type.value_type)).fill_null(False)
            rows = pc.list_parent_indices(values).filter(found).to_numpy(zero_copy_only=False)
            return np.bincount(rows, minlength=len(values)) > 0
        case "contains":
            met = pc.match_substring(values, wanted[0], ignore_case=True)
        case _:
            met = COMPARISONS[op](values, pa.scalar(wanted[0], values.type))
    return met.fill_null(False).to_numpy(zero_copy_only=False)


def _sql(column: pa.Field, op: str, wanted: list[Any]) -> str:
    name = '"' + column.name.replace('"', '""') + '"'
    literals = [_literal(value) for value in wanted]
    match op:
        case "in":
            return f"{name} IN ({', '.join(literals)})"
        case "contains" if pa.types.is_list(column.type):
            return f"array_has({name}, {literals[0]})"
        case "contains":
            return f"strpos(lower({name}), lower({literals[0]})) > 0"
        case _:
            return f"{name} {op} {literals[0]}"


def _literal(value: bool | int | float | str) -> str:
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            return repr(value)
        case _:
            return "'" + value.replace("'", "''") + "'"
