"""A training worker imports nothing that it does not use, because each of these packages costs it seconds or tens of MB."""

from __future__ import annotations

import subprocess
import sys

UNUSED = {
    "ray",
    "pyspark",
    "pandas",
    "pyarrow",
    "mlflow",
    "sklearn",
    "scipy",
    "matplotlib",
    "lancedb",
    "transformers",
    "torchvision",
}


def test_a_training_worker_imports_what_it_uses() -> None:
    """Only retrieval and warm starts read Arrow, and only rank 0 imports MLflow, scikit-learn and matplotlib."""
    said = subprocess.run(
        [sys.executable, "-c", "import sys, recsys_ray.training.train; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    modules = set(said.stdout.split())
    assert {"torch", "recsys_ray.training.train"} <= modules and not UNUSED & modules
