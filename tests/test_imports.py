"""What a training worker does not use, it does not import: each of these costs it seconds, or tens of MB."""

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
    """Retrieval and warm starts alone read Arrow; rank 0 alone imports MLflow, scikit-learn and matplotlib, when it logs,
    evaluates and draws."""
    said = subprocess.run(
        [sys.executable, "-c", "import sys, recsys_ray.training.train; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    modules = set(said.stdout.split())
    assert {"torch", "recsys_ray.training.train"} <= modules and not UNUSED & modules
