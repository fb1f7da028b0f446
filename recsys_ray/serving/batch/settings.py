"""The settings that both batch jobs have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from recsys_ray.serving.batch.models import InferenceDevice
from recsys_ray.serving.bundle import InferenceEngine, TablePrecision


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The flags that every batch job has."""

    out: str
    """The folder to write, on a file system that all workers share. It appears when everything is in it; a job that was killed
    and runs again does what is missing."""
    engine: Literal["ray", "spark"] = "ray"
    """What runs the tasks: Ray Data, or Spark."""
    format: Literal["parquet", "delta"] = "parquet"
    """delta: the Parquet files together are a Delta table too, of one version (extra `delta`)."""
    workers: int = 0
    """With Ray: how many processes, each with its own copy of the models; 0: one a core, or with --device cuda one a GPU."""
    device: InferenceDevice = "cpu"
    inference: InferenceEngine = "auto"
    """Chooses the engine of the ranking model's dense part: torch; onnx (faster on CPUs; extra `serving`); onnx-int8 (faster yet,
    at a small loss: jobs/compare_precision.py); auto: onnx on a CPU where it is installed and can run the model."""
    tables: TablePrecision = "fp32"
    """The type of the ranking model's embeddings in memory: fp16 halves and int8 quarters them, at a small loss."""
    overwrite: bool = False
    """Replace an output that was made of other rows or by another model, or begin one again that was not finished."""


def check_free(names: Iterable[str], added: Iterable[str], origin: str) -> None:
    """Raises ValueError for an input column that has the name of one that a job adds."""
    for name in set(names) & set(added):
        raise ValueError(f"column {name!r} of {origin} has the name of a column that this job adds: rename it or leave it out")
