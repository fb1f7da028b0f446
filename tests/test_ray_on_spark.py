"""Ray on Spark: preparation and training on Ray nodes that are tasks of a Spark cluster, with nothing left of them afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys_ray.datasets import synthetic
from tests.support.processes import MARK, ROOT, marked, needs_java, wait_until_gone

RAY_AGENT = r"\d+ ray::(Dashboard|RuntimeEnv)Agent"


@pytest.fixture(scope="session")
def mark() -> Iterator[str]:
    """Marks the test's processes, and waits at the end of the session for agents of stopped nodes, which retry for a minute."""
    mark = uuid.uuid4().hex
    yield mark
    assert wait_until_gone(lambda: marked(mark), seconds=90) == []


@pytest.mark.long
@needs_java
def test_prepares_and_trains_and_leaves_nothing(tmp_path: Path, mark: str) -> None:
    raw = synthetic.generate_clicks(tmp_path / "raw", 20_000, dense=3, categorical=4, num_embeddings=500, multi=True)
    command = [sys.executable, "jobs/train_dlrm.py", f"--data.parquet={raw / 'interactions'}", f"--run-dir={tmp_path / 'run'}"]
    command += ["--train.epochs=1", "--train.global-batch=1024", "--launch.workers=2", "--launch.ray.on-spark=always"]
    command += ["--launch.ray.spark-nodes", "1", "1", "--launch.ray.spark-cpus-per-node=2", "--launch.ray.spark-gpus-per-node=0"]
    # As on Databricks, the cluster is there before the job is: which one, Spark's own settings say.
    spark = {"PYSPARK_SUBMIT_ARGS": "--master local-cluster[1,2,2048] --conf spark.ui.enabled=false pyspark-shell"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **spark, MARK: mark}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["launcher"] == "ray" and outcome["test_auc"] > 0.55
    assert wait_until_gone(lambda: [line for line in marked(mark) if not re.match(RAY_AGENT, line)]) == []
