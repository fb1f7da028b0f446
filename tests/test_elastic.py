"""Elastic for real: training starts on the one worker that fits, moves to two when a node joins, and keeps its place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parent.parent
EPOCHS = 25


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs no worker, and one node for one worker."""
    ray_cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "dashboard_agent_listen_port": None}
    )
    ray_cluster.add_node(num_cpus=1)
    yield ray_cluster
    ray_cluster.shutdown()


def wait_for(pattern: str, log: Path, job: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 240
    while not (found := re.search(pattern, log.read_text())):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    return found[0]


def test_run_grows_with_the_cluster_and_keeps_its_place(dataset: Path, tmp_path: Path, cluster: Cluster) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "jobs/train_dlrm.py", f"--data.path={dataset}", f"--run-dir={run_dir}"]
    command += [f"--train.epochs={EPOCHS}", "--train.patience=0", "--train.global-batch=1024", "--train.log-every=1"]
    command += ["--checkpoint.every-steps=10", "--launch.workers=2", "--launch.min-workers=1", "--launch.ray.resize-seconds=3"]
    with log.open("wb") as output:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_for(r"epoch 1/\d+ +step +15 ", log, job)
        cluster.add_node(num_cpus=1)
        went_on = wait_for(r"going on after step \d+, .* with 2 workers", log, job)
        assert job.wait(300) == 0, log.read_text()[-3000:]
    finally:
        job.kill()
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["epochs"] == EPOCHS
    points = json.loads((run_dir / "checkpoints" / f"step_{outcome['steps']}" / "committed.json").read_text())["training"]
    assert [point["step"] for point in points] == list(range(1, outcome["steps"] + 1))
    # Not thrown back to the beginning, nor to the beginning of the epoch.
    step = int(re.search(r"step (\d+)", went_on)[1])
    assert step >= 10 and f"step {step + 1:>6} " in log.read_text().split(went_on)[1]
