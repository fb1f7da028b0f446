"""A third model is one file and one line of the registry: trained on two workers, resumed, planned, checkpointed, exported, used.

The package is copied, so that the file and the line are really all that is added, also in the workers' processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

FILE = "recsys_ray/models/factorization_machine.py"
LAST_LINE = '    "two_tower": "recsys_ray.models.two_tower",\n'
LINE = '    "factorization_machine": "recsys_ray.models.factorization_machine",\n'
JOB = """
from pathlib import Path
from recsys_ray.config import LaunchConfig, LoopConfig, OptimizerConfig, ShardingConfig, TrackingConfig, TrainConfig
from recsys_ray.models.factorization_machine import FactorizationMachineConfig
from recsys_ray.training.job import run_training_job

CONFIG = TrainConfig(
    model=FactorizationMachineConfig(),
    optimizer=OptimizerConfig(sparse_learning_rate=0.02),
    train=LoopConfig(epochs=2, global_batch=1024, log_every=10),
    sharding=ShardingConfig(types=("row_wise",)),
    tracking=TrackingConfig(backend="none"),
    launch=LaunchConfig(engine="local", workers=2),
)

if __name__ == "__main__":
    run_training_job(CONFIG, "A factorization machine.", fetch_sample=Path.absolute)
"""
PREDICT_AND_PLAN = """
import json, runpy, sys
import numpy as np
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.models.evaluation.binary_metrics import binary_metrics
from recsys_ray.serving.bundle import load_ranker

ranker = load_ranker(sys.argv[1])
blocks = list(read_split(DatasetDirectory.open(ranker.manifest.dataset["path"]), "test"))
scores = np.concatenate([ranker.predict_encoded(block) for block in blocks])
labels = np.concatenate([block["label"].numpy() for block in blocks])
print(json.dumps(binary_metrics(scores, labels, np.ones(len(labels)))))

sys.argv = ["jobs/plan.py", "factorization-machine", "--data.path", ranker.manifest.dataset["path"], "--cluster.gpus-per-node=2"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the third model, its file and its line, and nothing else."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("recsys_ray", "jobs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "support" / "factorization_machine.py", root / FILE)
    registry = root / "recsys_ray" / "models" / "registry.py"
    text = registry.read_text()
    assert text.count(LAST_LINE) == 1
    registry.write_text(text.replace(LAST_LINE, LAST_LINE + LINE))
    (root / "train_machine.py").write_text(JOB)
    (root / "predict_and_plan.py").write_text(PREDICT_AND_PLAN)
    return root


def run(tree: Path, *command: str) -> str:
    """Runs a script of the copy with the copy's package, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_third_model_trains_resumes_predicts_from_its_export_and_is_planned(tree: Path, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train = ("train_machine.py", "--data.path", str(dataset), "--run-dir", str(run_dir))
    assert "c1_table                row_wise" in run(tree, *train, "--train.max-steps", "30")
    stopped = json.loads((run_dir / "outcome.json").read_text())
    assert "resuming after step 30" in run(tree, *train, "--launch.workers=1")
    finished = json.loads((run_dir / "outcome.json").read_text())
    assert stopped["steps"] == 30 and finished["steps"] == 96 and finished["test_auc"] > max(0.6, stopped["test_auc"])
    assert json.loads((run_dir / "config.json").read_text())["model"]["name"] == "factorization_machine"
    assert (run_dir / "report.html").exists() and len(list((run_dir / "checkpoints").iterdir())) >= 2
    said = run(tree, "predict_and_plan.py", str(run_dir))
    predicted = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert predicted["auc"] == pytest.approx(finished["test_auc"], abs=1e-6)
    assert predicted["logloss"] == pytest.approx(finished["test_logloss"], abs=1e-6)
    assert "2 x h100" in said and "smallest that fits: 1 node of 1 x h100" in said
