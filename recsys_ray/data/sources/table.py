"""The protocol of an input table, and what a pass over the joined rows reads of it.

`sources/parquet_files.py` has the table for Parquet, `engines/spark/tables.py` the one for tables and views of Spark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from recsys_ray.columns import ROW_HASH

Broadcast = Callable[[Any], Callable[[], Any]]
"""An engine's function that sends a value to all tasks once; tasks call what it returns to get the value."""


class InputTable(Protocol):
    """A table that preparation reads, with what is known of it before its rows are read: ParquetFiles or a SparkTable."""

    @property
    def rows(self) -> int:
        """The number of rows."""

    @property
    def arrow_schema(self) -> pa.Schema:
        """The names and types of the columns."""

    @property
    def stamps(self) -> tuple[str, ...]:
        """Text that changes when the rows do."""

    def read(self, columns: list[str]) -> pa.Table:
        """Reads all rows into this process; for the tables of users and items."""

    def unreadable(self) -> str:
        """Returns which part of the table cannot be read and why; empty when all of it can."""


class PassInput(NamedTuple):
    """The rows of one pass: tasks read `columns` of `table` with ROW_HASH, then call `join` on each batch of them."""

    table: InputTable
    columns: list[str]
    join: Callable[[pa.Table], pa.Table]


def row_hash_sum(rows: pa.Table) -> int:
    """Returns the sum of ROW_HASH modulo 2^64; two different sets of equally many rows have the same one with chance 2^-64."""
    return int(rows[ROW_HASH].to_numpy().sum(dtype=np.uint64))
