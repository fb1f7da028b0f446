"""Prepares Parquet or a Spark table as a dataset directory: schema.json, MDS row blocks by split, rejected rows, summary.json.

    python jobs/prepare_data.py --parquet data/clicks --infer-schema data/clicks/schema.json   # a first schema, to edit
    python jobs/prepare_data.py --parquet data/clicks --out datasets/clicks --split.by time

Running it again on the same inputs does nothing. Ray Data does the work, or Spark with --engine spark: in the active session, or
in one of its own if there is none. On a cluster:

    ray job submit --working-dir . -- python jobs/prepare_data.py ...
    spark-submit jobs/prepare_data.py --engine spark ...
    python jobs/prepare_data.py --engine spark --parquet table:main.recsys.clicks --schema clicks.json ...         # Databricks
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.config import PrepareConfig
from recsys_ray.data.engines.base import open_engine
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.data.prepare.schema_inference import infer_schema
from recsys_ray.data.sources.source import open_source


@dataclass(frozen=True)
class PrepareJob(PrepareConfig):
    """The flags of this job: the settings of a preparation, and those that infer a schema instead."""

    infer_schema: str = ""
    """Only infer a schema from the types of the columns and write it to this file, for you to edit."""
    label: str = ""
    """With --infer-schema: the label column. Empty: the first of label, click, clicked, target and rating that there is. none:
    every row is a positive example, as in a log of purchases."""


def main(job: PrepareJob) -> None:
    """Prepares the dataset and prints how many rows were kept and rejected, or with --infer-schema only writes a schema."""
    if job.infer_schema:
        write_schema(job)
        return
    summary = prepare(job).summary
    print(f"{job.out}: {summary['rows_in']:,} rows in -> {summary['rows']}, {summary['rejected']:,} rejected")
    for reason, count in summary["rejected_reasons"].items():
        print(f"  rejected: {count:,} rows, {reason}")


def write_schema(job: PrepareJob) -> None:
    """Writes a schema inferred from the types of the columns, and prints which columns it leaves out."""
    with open_engine(job.engine) as engine:
        table = open_source(job, engine.open_table).arrow_schema
    schema = infer_schema(table, job.label)
    Path(job.infer_schema).write_text(schema.to_json())
    print(f"wrote {job.infer_schema}: read it, edit it, then run again without --infer-schema")
    for name in set(table.names) - {column.name for column in schema.columns}:
        print(f"  left out: {name} ({table.field(name).type})")


if __name__ == "__main__":
    with readable_errors("nothing was written"):
        main(tyro.cli(PrepareJob, description=__doc__))
