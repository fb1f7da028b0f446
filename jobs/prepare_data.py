"""Parquet or a Spark table -> dataset directory (schema.json, MDS row blocks by split, rejected rows, summary.json).

    python jobs/prepare_data.py --parquet data/clicks --infer-schema data/clicks/schema.json   # a first schema: read, edit
    python jobs/prepare_data.py --parquet data/clicks --out datasets/clicks --split.by time

Running it again on the same inputs does nothing. Ray Data does the work, or with --engine spark Spark: on the active session,
else on one of its own. On a cluster:

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
    infer_schema: str = ""
    """Only write a schema inferred from the types of the columns to this file, to be edited."""
    label: str = ""
    """With --infer-schema: which column is the label; none: every row is a positive one, as in a log of purchases."""


def main(job: PrepareJob) -> None:
    if job.infer_schema:
        write_schema(job)
        return
    summary = prepare(job).summary
    print(f"{job.out}: {summary['rows_in']:,} rows in -> {summary['rows']}, {summary['rejected']:,} rejected")
    for reason, count in summary["rejected_reasons"].items():
        print(f"  rejected: {count:,} rows, {reason}")


def write_schema(job: PrepareJob) -> None:
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
