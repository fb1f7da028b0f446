"""Measures what smaller numbers cost a ranking model and save: quality on the test split, memory, and speed at each precision."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.serving.bundle import InferenceEngine, TablePrecision, load_ranker
from recsys_ray.serving.promotion.ranking import score_rows

HEADER = "tables  engine      weights MB       AUC  difference        NE  largest change      rows/s"


class Precision(NamedTuple):
    """The types of numbers that a model computes with."""

    tables: TablePrecision
    engine: InferenceEngine


COMPARED = (
    Precision("fp32", "torch"),
    Precision("fp16", "torch"),
    Precision("int8", "torch"),
    Precision("fp32", "onnx"),
    Precision("fp32", "onnx-int8"),
    Precision("int8", "onnx-int8"),
)
"""The first is what the others are compared with."""


@dataclass(frozen=True)
class PrecisionFigures:
    """The figures of a model at one precision."""

    precision: Precision
    weight_bytes: int
    """Bytes of all weights in memory, tables included."""
    auc: float
    auc_difference: float
    """AUC less that of the first precision compared."""
    ne: float
    largest_change: float
    """The largest difference of a row's score from that of the first precision compared."""
    rows_per_second: float
    """Rows that are read and scored, the first time."""

    def line(self) -> str:
        """Returns the figures as a line of the table under HEADER."""
        return (
            f"{self.precision.tables:<8}{self.precision.engine:<11}{self.weight_bytes / 1e6:>11,.2f}{self.auc:>10.5f}"
            f"{self.auc_difference:>+12.5f}{self.ne:>10.5f}{self.largest_change:>16.1e}{self.rows_per_second:>12,.0f}"
        )


def compare_precision(model: str, dataset: DatasetDirectory) -> Iterator[PrecisionFigures]:
    """Yields the figures of a ranking model for each of COMPARED, one model in memory at a time.

    Raises ValueError for a model that retrieves, and where the test split cannot measure it.
    """
    reference: np.ndarray | None = None
    reference_auc = 0.0
    for precision in COMPARED:
        ranker = load_ranker(model, tables=precision.tables, engine=precision.engine)
        began = time.perf_counter()
        scored = score_rows(ranker, dataset)
        seconds = time.perf_counter() - began
        metrics = scored.measurement().metrics()
        if reference is None:
            reference, reference_auc = scored.scores, metrics["auc"]
        yield PrecisionFigures(
            precision,
            sum(one.nbytes for one in ranker.task.module.state_dict().values()),
            metrics["auc"],
            metrics["auc"] - reference_auc,
            metrics["ne"],
            float(np.abs(scored.scores - reference).max()),
            len(scored.scores) / seconds,
        )
