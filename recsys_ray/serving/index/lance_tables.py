"""LanceDB tables, which hold the rows of an index: the one module that imports lancedb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recsys_ray.serving.index.vector_index import VECTOR


@dataclass(frozen=True)
class LanceTables:
    """The tables at one URI."""

    database: Any
    """lancedb.db.DBConnection"""

    def names(self) -> list[str]:
        """Returns the names of all tables: LanceDB lists only the first few by default."""
        return list(self.database.table_names(limit=1 << 20))

    def open(self, name: str) -> Any:
        """Opens a table, a lancedb.table.Table."""
        return self.database.open_table(name)

    def create(self, name: str, rows: pa.RecordBatchReader) -> Any:
        """Writes a table."""
        return self.database.create_table(name, rows, schema=rows.schema)

    def drop(self, name: str) -> None:
        """Drops a table, if it exists."""
        if name in self.names():
            self.database.drop_table(name)


def lance_tables(uri: str) -> LanceTables:
    """Connects to the tables at `uri`, a folder or an object store's URL."""
    # Not at the top: once it is loaded, every process that this one starts, Ray's among them, prints a warning.
    import lancedb

    return LanceTables(lancedb.connect(uri))


def add_inverted_lists(table: Any, lists: int) -> None:
    """Divides the vectors of a table into inverted lists, for searches by dot product."""
    from lancedb.index import IvfFlat  # as in `lance_tables`

    table.create_index(VECTOR, config=IvfFlat(distance_type="dot", num_partitions=lists))


def rows_where(search: Any, condition: str) -> pa.Table:
    """Runs a search of a table over the rows that meet an SQL condition; "" is all rows.

    Raises ValueError for a condition that LanceDB does not understand.
    """
    try:
        return (search.where(condition, prefilter=True) if condition else search).to_arrow()
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"cannot search where {condition!r}: {error}" if condition else str(error)) from error
