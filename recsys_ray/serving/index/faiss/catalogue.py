"""The raw columns of the items, in the order of their vectors: memory-mapped for reading, and in LanceDB for SQL conditions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.serving.index.lance_tables import lance_tables, rows_where

CATALOGUE_FILE, CONDITIONS_FOLDER, CONDITIONS_TABLE = "catalogue.arrow", "conditions", "catalogue"
POSITION = "__position"
"""A column of the LanceDB table alone."""


@dataclass(frozen=True)
class RawColumns:
    """The opened catalogue."""

    columns: pa.Table
    table: Any
    """lancedb.table.Table"""

    def positions_where(self, condition: str) -> np.ndarray:
        """Returns the rows that meet an SQL condition, int64, ascending. Raises ValueError for one that LanceDB refuses."""
        scan = self.table.search().select([POSITION]).limit(max(1, len(self.columns)))
        return np.sort(rows_where(scan, condition)[POSITION].to_numpy())


def write_raw_columns(folder: Path, columns: pa.Table) -> None:
    """Writes the catalogue. Raises ValueError where a column has the name POSITION."""
    if POSITION in columns.column_names:
        raise ValueError(f"the catalogue has a column {POSITION!r}, which the index needs for itself: rename it")
    columns = columns.combine_chunks()  # rows are taken from one chunk many times as fast as from many
    with pa.OSFile(str(folder / CATALOGUE_FILE), "wb") as file, pa.ipc.new_file(file, columns.schema) as writer:
        writer.write_table(columns)
    numbered = columns.append_column(POSITION, pa.array(np.arange(len(columns))))
    lance_tables(str(folder / CONDITIONS_FOLDER)).create(CONDITIONS_TABLE, numbered.to_reader())


def open_raw_columns(folder: Path) -> RawColumns:
    """Opens what `write_raw_columns` wrote."""
    columns = pa.ipc.open_file(pa.memory_map(str(folder / CATALOGUE_FILE))).read_all()
    return RawColumns(columns, lance_tables(str(folder / CONDITIONS_FOLDER)).open(CONDITIONS_TABLE))
