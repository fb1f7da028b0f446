"""A process imports nothing that it does not use, because each of these packages costs it seconds or tens of MB."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED_BY_A_WORKER = {
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
UNUSED_BY_A_LAUNCH = UNUSED_BY_A_WORKER | {"torch", "torchrec", "fbgemm_gpu", "streaming", "numpy", "sqlalchemy"}


def imported_by(code: str) -> set[str]:
    """Returns the modules that a new process has imported once it has run `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_a_training_worker_imports_what_it_uses() -> None:
    """Only retrieval and warm starts read Arrow, and only rank 0 imports MLflow, scikit-learn and matplotlib."""
    modules = imported_by("import recsys_ray.training.train")
    assert {"torch", "recsys_ray.training.train"} <= modules and not UNUSED_BY_A_WORKER & modules


@pytest.mark.parametrize("job", ["train_dlrm", "train_two_tower"])
def test_a_launching_process_imports_what_it_uses(job: str) -> None:
    """It needs the settings; its engine's adapter and the workers import the rest."""
    modules = imported_by(f"import runpy; runpy.run_path('jobs/{job}.py')")
    assert "recsys_ray.training.job" in modules and not UNUSED_BY_A_LAUNCH & modules


def test_ray_launches_without_torch() -> None:
    """Ray Train's controller imports what the launching process does, and both come before the workers."""
    modules = imported_by("import recsys_ray.launch.ray_launcher")
    assert "ray.train" in modules and not {"torch", "fbgemm_gpu"} & modules
