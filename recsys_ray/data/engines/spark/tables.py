"""Tables and views that Spark knows by name, of whatever catalog: Unity Catalog, Hive, or views of the session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.engines.base import EngineFailed
from recsys_ray.data.engines.spark.session import run_jobs


@dataclass(frozen=True)
class SparkTable:
    """A table without files to tell its rows by: a row is known by xxhash64 of its values, so that rows with equal values share
    a split. All columns count, and are read in every pass: a view with only those that are wanted saves that."""

    frame: DataFrame
    arrow_schema: pa.Schema

    @property
    def rows(self) -> int:
        return self._facts[0]

    @property
    def stamps(self) -> tuple[str, ...]:
        """Of the rows themselves: a table's name says nothing of what it holds today."""
        return (f"table {self._facts} {self.frame.schema.simpleString()}",)

    @cached_property
    def _facts(self) -> tuple[int, Any]:
        """Rows, and the sum of their hashes, which does not depend on their order. One pass over the table."""
        total = F.sum(_row_hash(self.frame).cast("decimal(20,0)"))
        facts = self.frame.agg(F.count(F.lit(1)), total)
        return tuple(run_jobs(self.frame.sparkSession, facts.collect)[0])

    def select(self, columns: list[str]) -> DataFrame:
        """`columns` and ROW_HASH."""
        return self.frame.select(*map(_column, columns), _row_hash(self.frame).alias(ROW_HASH))

    def read(self, columns: list[str]) -> pa.Table:
        return run_jobs(self.frame.sparkSession, self.frame.select(*map(_column, columns)).toArrow)

    def unreadable(self) -> str:
        return ""


def open_spark_table(spark: SparkSession, name: str) -> SparkTable:
    """Raises ValueError where Spark finds no such table, may not read it, or cannot hand over one of its columns."""
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
    """xxhash64 passes over nulls, and takes a list for its values: so where these are, and how many, is hashed with them."""
    hashed = [field for field in frame.schema if _can_be_hashed(field.dataType)]
    lists = [F.size(_column(field.name)) for field in hashed if isinstance(field.dataType, ArrayType)]
    values = [part for field in hashed for part in (_column(field.name), F.isnull(_column(field.name)))]
    return F.xxhash64(*values, *lists)


def _can_be_hashed(kind: DataType) -> bool:
    return not any(word in kind.simpleString() for word in ("map<", "variant"))
