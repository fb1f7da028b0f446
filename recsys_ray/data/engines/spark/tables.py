"""Input tables that Spark knows by name, from any catalog: Unity Catalog, Hive, or views of the session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.engines.base import EngineFailed
from recsys_ray.data.engines.spark.session import run_jobs


class _RowSummary(NamedTuple):
    rows: int
    hash_sum: Any
    """A Decimal; None for an empty table."""


@dataclass(frozen=True)
class SparkTable:
    """An InputTable without files, whose rows are identified by xxhash64 of their values, so that equal rows share a split.

    All columns are hashed, hence read in every pass; a view with only the needed columns avoids that.
    """

    frame: DataFrame
    arrow_schema: pa.Schema

    @property
    def rows(self) -> int:
        """The number of rows; the first call reads the table."""
        return self._row_summary.rows

    @property
    def stamps(self) -> tuple[str, ...]:
        """The number of rows and the sum of their hashes: the name of a table does not change with its rows."""
        return (f"table {tuple(self._row_summary)} {self.frame.schema.simpleString()}",)

    @cached_property
    def _row_summary(self) -> _RowSummary:
        """The number of rows and the sum of their hashes, which does not depend on their order; takes a pass over the table."""
        total = F.sum(_row_hash(self.frame).cast("decimal(20,0)"))
        facts = self.frame.agg(F.count(F.lit(1)), total)
        return _RowSummary(*run_jobs(self.frame.sparkSession, facts.collect)[0])

    def select(self, columns: list[str]) -> DataFrame:
        """Returns a DataFrame of `columns` and ROW_HASH."""
        return self.frame.select(*map(_column, columns), _row_hash(self.frame).alias(ROW_HASH))

    def read(self, columns: list[str]) -> pa.Table:
        """Reads these columns into this process."""
        return run_jobs(self.frame.sparkSession, self.frame.select(*map(_column, columns)).toArrow)

    def unreadable(self) -> str:
        """Returns an empty string: Spark's own errors say what cannot be read."""
        return ""


def open_spark_table(spark: SparkSession, name: str) -> SparkTable:
    """Opens a table or view.

    Raises ValueError when Spark does not find it, may not read it, or cannot convert a column to Arrow.
    """
    try:
        frame = run_jobs(spark, lambda: spark.table(name))
    except EngineFailed as error:
        no_hive = spark.conf.get("spark.sql.catalogImplementation") == "in-memory"
        hint = "; for Hive's, start Spark with spark.sql.catalogImplementation=hive" if no_hive else ""
        raise ValueError(f"table:{name} is no table or view of this Spark session ({error}){hint}") from error
    try:
        return SparkTable(frame, run_jobs(spark, frame.limit(0).toArrow).schema)
    except EngineFailed as error:
        raise ValueError(f"table:{name} has a column that cannot be read: leave it out, by a view ({error})") from error


def _column(name: str) -> Column:
    return F.col(f"`{name.replace('`', '``')}`")


def _row_hash(frame: DataFrame) -> Column:
    """Hashes a row with the positions of its nulls and the lengths of its lists, both of which xxhash64 ignores."""
    hashed = [field for field in frame.schema if _can_be_hashed(field.dataType)]
    lists = [F.size(_column(field.name)) for field in hashed if isinstance(field.dataType, ArrayType)]
    values = [part for field in hashed for part in (_column(field.name), F.isnull(_column(field.name)))]
    return F.xxhash64(*values, *lists)


def _can_be_hashed(kind: DataType) -> bool:
    return not any(word in kind.simpleString() for word in ("map<", "variant"))
