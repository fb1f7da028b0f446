"""Synthetic clicks of any size: power-law ids, and labels from a known model, so that the best possible AUC is known.

    python jobs/fetch_dataset.py synthetic --rows 4000000 --out data/synthetic

Ray Data writes them in parallel. A row depends only on the seed and its number, not on how rows are cut into blocks, and a larger
set with the same seed starts with the rows of a smaller one. The model that draws the labels is in `teacher.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import SaveMode
from ray.data.datasource import FilenameProvider

from recsys_ray.datasets.folder import build_once
from recsys_ray.datasets.teacher import BINS, LabelCounts, Teacher, auc_of_counts, count_labels, generate_rows
from recsys_ray.files.json_text import json_text
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema

BLOCK_ROWS = 1 << 17
"""The number of rows that one task computes and one file holds."""


def generate_clicks(
    out: Path,
    rows: int = 1_000_000,
    dense: int = 13,
    categorical: int = 26,
    *,
    num_embeddings: int = 10_000,
    exponent: float = 1.5,
    effective_ids: int = 20,
    interactions: int = 2,
    multi: bool = False,
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> Path:
    """Writes `out/interactions/*.parquet` (label, i*, c*, with `multi` m1), schema.json and teacher.json; see `Teacher`.

    teacher.json holds the teacher, the positive rate and `best_auc`: the AUC of the true probabilities over all rows written.
    `block_rows` decides the number of files and not their rows, which follow one another in the order of the file names. `out`
    must be on a file system that all nodes of Ray share. Returns at once when `out` was made with the same parameters.
    Raises ValueError for impossible parameters and FileExistsError when `out` holds something else.
    """
    if rows < 1 or block_rows < 1:
        raise ValueError(f"synthetic: rows is {rows} and block_rows {block_rows}; wants 1 or more")
    teacher = Teacher(
        dense=dense,
        categorical=categorical,
        num_embeddings=num_embeddings,
        exponent=exponent,
        effective_ids=effective_ids,
        interactions=interactions,
        multi=multi,
        seed=seed,
    )

    def write(folder: Path) -> None:
        _write_interactions(teacher, rows, folder / "interactions", block_rows)
        facts = _facts(teacher, _count(teacher, rows, block_rows))
        (folder / "teacher.json").write_text(json_text(facts))
        (folder / "schema.json").write_text(teacher_schema(teacher).to_json())

    return build_once(out, {"dataset": "synthetic", "rows": rows, **dataclasses.asdict(teacher)}, write)


def teacher_schema(teacher: Teacher) -> Schema:
    """Returns the schema of a teacher's rows: dense columns unscaled, and id columns in which value v selects row v + 1."""
    columns: list[Column] = [Label("label")]
    columns += [Dense(f"i{number}") for number in range(1, teacher.dense + 1)]
    for name, size in teacher.ids.items():
        columns.append(Categorical(name, encoding="identity", num_embeddings=size + 1, multi=name == "m1"))
    return Schema(tuple(columns))


class _OrderedNames(FilenameProvider):
    """File names without Ray's random part, so that the same call writes the same files."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:06}.parquet"


def _write_interactions(teacher: Teacher, number: int, folder: Path, block_rows: int) -> None:
    table = _numbers(number, block_rows).map_batches(partial(_rows, teacher=teacher), batch_size=None)
    table.write_parquet(str(folder), filename_provider=_OrderedNames(), mode=SaveMode.OVERWRITE)


def _count(teacher: Teacher, number: int, block_rows: int) -> LabelCounts:
    """Counts the labels of all rows, which are computed again: three times as fast as reading them from the files."""
    counted = _numbers(number, block_rows).map_batches(partial(_count_rows, teacher=teacher), batch_size=None)
    total = np.zeros((BINS, 2), np.int64)
    for batch in counted.iter_batches(batch_size=None):
        np.add.at(total, batch["bin"], np.stack([batch["positive"], batch["negative"]], axis=1))
    return LabelCounts(total[:, 0], total[:, 1])


def _facts(teacher: Teacher, counts: LabelCounts) -> dict[str, Any]:
    rows = int(counts.positive.sum() + counts.negative.sum())
    return {
        "best_auc": auc_of_counts(counts),
        "positive_rate": float(counts.positive.sum() / rows),
        "rows": rows,
        "teacher": dataclasses.asdict(teacher),
    }


def _numbers(number: int, block_rows: int) -> ray.data.Dataset:
    return ray.data.range(number, override_num_blocks=-(-number // block_rows))


def _rows(batch: dict[str, np.ndarray], teacher: Teacher) -> pa.Table:
    return generate_rows(teacher, batch["id"])


def _count_rows(batch: dict[str, np.ndarray], teacher: Teacher) -> dict[str, np.ndarray]:
    counts = count_labels(generate_rows(teacher, batch["id"]), teacher)
    seen = np.flatnonzero(counts.positive + counts.negative)
    return {"bin": seen, "positive": counts.positive[seen], "negative": counts.negative[seen]}
