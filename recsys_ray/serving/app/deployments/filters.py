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
        column = _column(items.schema, comparison)
        try:
            kept &= _meets(items[column.name].combine_chunks(), column.type, comparison)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise _unusable(column, comparison) from error
    return kept


def sql_condition(schema: pa.Schema, where: Sequence[Comparison]) -> str:
    """Returns the conditions as SQL, for `VectorIndex.search`. Raises ValueError as `eligible_items` does."""
    return " AND ".join(_sql(_column(schema, comparison), comparison) for comparison in where)


def _column(schema: pa.Schema, comparison: Comparison) -> pa.Field:
    if comparison.column not in schema.names:
        raise ValueError(f"where: items have no column {comparison.column!r}, only {', '.join(schema.names)}")
    column = schema.field(comparison.column)
    if (comparison.op == "in") != isinstance(comparison.value, list):
        raise ValueError(f"where: {comparison.column} {comparison.op}: a list goes with `in`, and a single value with the others")
    if pa.types.is_nested(column.type) and (comparison.op != "contains" or not pa.types.is_list(column.type)):
        raise ValueError(f"where: {comparison.column} holds lists: ask by `contains`")
    return column


def _unusable(column: pa.Field, comparison: Comparison) -> ValueError:
    return ValueError(f"where: {column.name} holds {column.type}, which cannot be asked {comparison.op} {comparison.value!r}")


def _meets(values: pa.Array, kind: pa.DataType, comparison: Comparison) -> np.ndarray:
    value = comparison.value
    match comparison.op:
        case "in":
            return pc.is_in(values, value_set=pa.array(value, kind)).to_numpy(zero_copy_only=False) & _there(values)
        case "contains" if pa.types.is_list(kind):
            found = pc.equal(pc.list_flatten(values), pa.scalar(value, kind.value_type)).fill_null(False)
            met = np.zeros(len(values), bool)
            met[pc.list_parent_indices(values).filter(found).to_numpy(zero_copy_only=False)] = True
            return met
        case "contains":
            met = pc.match_substring(values, value, ignore_case=True)
        case _:
            met = COMPARISONS[comparison.op](values, pa.scalar(value, kind))
    return met.fill_null(False).to_numpy(zero_copy_only=False)


def _there(values: pa.Array) -> np.ndarray:
    return values.is_valid().to_numpy(zero_copy_only=False)


def _sql(column: pa.Field, comparison: Comparison) -> str:
    name = '"' + column.name.replace('"', '""') + '"'
    kind = column.type.value_type if pa.types.is_list(column.type) else column.type
    try:
        values = [pa.scalar(one, kind).as_py() for one in np.atleast_1d(np.array(comparison.value, object))]
        literals = [_literal(one) for one in values]
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise _unusable(column, comparison) from error
    match comparison.op:
        case "in":
            return f"{name} IN ({', '.join(literals)})"
        case "contains" if pa.types.is_list(column.type):
            return f"array_has({name}, {literals[0]})"
        case "contains":
            return f"strpos(lower({name}), lower({literals[0]})) > 0"
        case _:
            return f"{name} {comparison.op} {literals[0]}"


def _literal(value: Any) -> str:
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            return repr(value)
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            raise TypeError(f"{type(value).__name__} has no literal here")
