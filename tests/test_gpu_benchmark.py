"""The benchmark on a GPU, run on a CPU as a user would, with a tiny dataset and where Ray, MLflow and Spark are absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

ABSENT = ("ray", "mlflow", "pyspark")
FIGURES = {
    "fill_seconds_per_billion",
    "first_step_seconds",
    "resident_ms",
    "resident_rows_per_second",
    "disk_first_ms",
    "disk_first_epoch_seconds",
    "disk_later_ms",
    "disk_later_epoch_seconds",
    "torchrec_ms",
    "torchrec_rows_per_second",
    "torchrec_sparse_dist_ms",
    "ours_over_torchrec",
    "disk_first_over_resident",
    "disk_later_over_resident",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Returns an environment in which the modules of ABSENT cannot be imported."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not wanted here')\n")
    paths = [str(tmp_path), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: str) -> str:
    """Runs a module of the speed benchmarks and returns what it prints."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_case_is_measured_and_an_error_does_not_end_the_others(environment: dict[str, str], tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    making = ["--rows=2048", "--num-embeddings=1000", "--processes=1"]
    assert "2,048 rows" in run(environment, "benchmarks.speed.gpu.dataset", dataset, *making)
    said = run(environment, "benchmarks.speed.gpu", dataset, "--dim=8", "--batches", "100", "256", "--pipelines=sparse_dist")
    found = json.loads(said.splitlines()[-1])
    assert found["dataset_rows"] == {"train": 2028, "validation": 20, "test": 0}
    assert all(found[package] for package in ("torch", "torchrec", "fbgemm"))
    cases = {(case["model"], case["batch"]): case for case in found["cases"]}
    assert cases.keys() == {(model, batch) for model in ("dcn", "dot") for batch in (100, 256)}
    for model in ("dcn", "dot"):
        assert "not a positive multiple" in cases[model, 100]["errors"][0]
        assert cases[model, 256]["errors"] == []
        assert {name for name in FIGURES if cases[model, 256][name] > 0} == FIGURES
