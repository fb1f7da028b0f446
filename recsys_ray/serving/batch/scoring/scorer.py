"""Scores of raw rows by a ranking model, from an Arrow table to an Arrow table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.transform import rejections
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.batch.partitioned.output import BatchOutput, BatchResult
from recsys_ray.serving.batch.partitioned.row_ranges import read_rows, row_ranges
from recsys_ray.serving.ranker import Ranker

SCORE_COLUMN, VERSION_COLUMN, TIME_COLUMN, REASON_COLUMN = "score", "model_version", "scored_at", "reason"
ADDED_BY_SCORING = (SCORE_COLUMN, VERSION_COLUMN, TIME_COLUMN, REASON_COLUMN)
"""The columns that scoring adds to those of the input."""
TIME_TYPE = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class ScoringPlan:
    """A table to score, divided into partitions, and where the scores go."""

    model: BatchModel
    files: ParquetFiles
    rows_per_file: int
    output: BatchOutput


def score_partition(plan: ScoringPlan, number: int) -> None:
    """Scores the rows of one partition and writes them. Called in a task."""
    write_scores(plan, number, loaded_scorer(plan.model))


def write_scores(plan: ScoringPlan, number: int, scorer: Scorer) -> None:
    """Reads the rows of one partition, scores and writes them."""
    wanted = row_ranges(plan.files.rows, plan.rows_per_file)[number]
    plan.output.write(number, map(scorer, read_rows(plan.files, wanted, plan.files.arrow_schema.names)))


@lru_cache(1)
def loaded_scorer(model: BatchModel) -> Scorer:
    """Returns the scorer of this process, which is loaded once."""
    return Scorer(model.load_ranker())


@dataclass(frozen=True)
class Scorer:
    """A ranking model as a function of Arrow tables."""

    ranker: Ranker

    def __call__(self, rows: pa.Table) -> BatchResult:
        """Returns the rows with ADDED_BY_SCORING. Rows whose values cannot be used have no score but a reason."""
        features = self.ranker.schema.features
        reasons = rejections(rows.select([column.name for column in features]), features)
        bad = reasons != None  # noqa: E711 (element by element)
        scores = np.zeros(rows.num_rows, np.float32)
        scores[~bad] = self.ranker.predict(rows.filter(pa.array(~bad)) if bad.any() else rows)
        scored = rows.append_column(SCORE_COLUMN, pa.array(scores, mask=bad))
        repeated = partial(pa.repeat, size=rows.num_rows)
        scored = scored.append_column(VERSION_COLUMN, repeated(pa.scalar(self.ranker.version)))
        scored = scored.append_column(TIME_COLUMN, repeated(utc_now()))
        return BatchResult(scored.append_column(REASON_COLUMN, pa.array(reasons, pa.string())), {"not_scored": int(bad.sum())})


def utc_now() -> pa.Scalar:
    """Returns the present time as an Arrow scalar."""
    return pa.scalar(datetime.now(UTC), TIME_TYPE)
