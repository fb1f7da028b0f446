"""Makes a dataset directory of synthetic clicks in seconds, without Ray, Spark or a network, for the benchmark on a GPU.

    python -m benchmarks.speed.gpu.dataset OUT --rows 8000000 --num-embeddings 3000000

The rows are those of `jobs/fetch_dataset.py synthetic`: 13 dense columns, 26 of power-law ids, 7.6 million table rows in all.
Processes write them as row blocks. No two rows depend on each other, so they need no shuffle. One row in a hundred is for
validation. A second call with the same numbers returns at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import tyro

from recsys_ray.columns import ROW_HASH, SPLIT_COLUMN, SPLITS
from recsys_ray.data.blocks.layout import mds_columns
from recsys_ray.data.blocks.packing import pack_rows
from recsys_ray.data.blocks.parts import PartReport, PartWriter
from recsys_ray.data.dataset.directory import SUMMARY
from recsys_ray.data.transform import transform
from recsys_ray.datasets.folder import build_once
from recsys_ray.datasets.teacher import Teacher, generate_rows
from recsys_ray.host_memory import keep_freed_memory
from recsys_ray.schema import Categorical, Dense, Label, Schema

PART_ROWS = 1 << 17
"""Rows that a process makes and writes at once: a shard of some 15 MB."""
VALIDATION_EVERY = 100
IMPORTED_ONCE = ["recsys_ray.data.blocks.parts", "recsys_ray.data.transform", "recsys_ray.datasets.teacher"]
"""Modules that the fork server imports before it forks, in place of every process by itself."""


@dataclass(frozen=True)
class GpuDataset:
    out: Annotated[Path, tyro.conf.Positional]
    rows: int = 8_000_000
    num_embeddings: int = 3_000_000
    """Rows of the largest table; the others are smaller, geometrically."""
    block_rows: int = 256
    processes: int | None = None
    """None: as many as there are cores."""


def main(job: GpuDataset) -> None:
    started = time.perf_counter()
    made_from = {"benchmark": "gpu", "rows": job.rows, "num_embeddings": job.num_embeddings, "block_rows": job.block_rows}
    build_once(job.out, made_from, partial(write_dataset, job))
    size = sum(file.stat().st_size for file in job.out.rglob("*") if file.is_file()) / 1e6
    print(f"{job.out}: {job.rows:,} rows, {size:,.0f} MB, in {time.perf_counter() - started:.1f} s", flush=True)


def write_dataset(job: GpuDataset, folder: Path) -> None:
    teacher = Teacher(num_embeddings=job.num_embeddings)
    schema = clicks_schema(teacher)
    writer = PartWriter(folder, mds_columns(schema), job.block_rows, PART_ROWS)
    writer.start()
    written = writer.commit(list(_parts(job, Parts(teacher, schema, writer, job.rows))))
    assert sum(written.rows.values()) == job.rows
    (folder / "schema.json").write_text(schema.to_json())
    (folder / SUMMARY).write_text(json.dumps(_summary(job, teacher, schema, written.rows), indent=2) + "\n")


def clicks_schema(teacher: Teacher) -> Schema:
    """Returns what `teacher_schema` of recsys_ray/datasets/synthetic.py does, whose module imports Ray."""
    dense = [Dense(f"i{number}") for number in range(1, teacher.dense + 1)]
    ids = [Categorical(name, encoding="identity", num_embeddings=size + 1) for name, size in teacher.ids.items()]
    return Schema((Label("label"), *dense, *ids))


@dataclass(frozen=True)
class Parts:
    """The rows as parts of PART_ROWS, each of which a process makes and writes."""

    teacher: Teacher
    schema: Schema
    writer: PartWriter
    rows: int

    def write(self, number: int) -> PartReport:
        ids = np.arange(number * PART_ROWS, min((number + 1) * PART_ROWS, self.rows))
        encoded = pack_rows(transform(generate_rows(self.teacher, ids), self.schema, {}), self.writer.columns)
        held_out = ids % VALIDATION_EVERY == VALIDATION_EVERY - 1
        splits = np.where(held_out, SPLITS.index("validation"), SPLITS.index("train")).astype(np.uint8)
        encoded = encoded.append_column(SPLIT_COLUMN, pa.array(splits))
        return self.writer.write(encoded.append_column(ROW_HASH, pa.array(ids.astype(np.uint64))), number)


def _parts(job: GpuDataset, parts: Parts) -> Iterator[PartReport]:
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    numbers = range(-(-job.rows // PART_ROWS))
    with ProcessPoolExecutor(job.processes, context, initializer=keep_freed_memory) as pool:
        yield from pool.map(parts.write, numbers)


def _summary(job: GpuDataset, teacher: Teacher, schema: Schema, rows: dict[str, int]) -> dict[str, object]:
    """Returns what preparation would write, but for the cardinalities, which nothing here counts."""
    return {
        "rows_in": job.rows,
        "rows": rows,
        "rejected": 0,
        "rejected_reasons": {},
        "columns": {column.name: {"missing_rate": 0.0} for column in schema.columns},
        "block_rows": job.block_rows,
        "fingerprint": f"gpu-{job.rows}-{job.num_embeddings}-{job.block_rows}-{teacher.seed}",
        "teacher": asdict(teacher),
    }


if __name__ == "__main__":
    main(tyro.cli(GpuDataset, description=__doc__))
