"""Elastic training under Ray: two workers, one when a node is lost, two when one joins; each row trains once an epoch."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config.serialization import from_json
from recsys_ray.models.registry import model_config
from recsys_ray.training.train import train
from tests.support.audit import assert_every_row_once_an_epoch, numbered_rows, rows_by_step
from tests.support.processes import ROOT
from tests.support.workers import run_workers

pytestmark = pytest.mark.long

EPOCHS, BATCH = 9, 1024
# Small, so that what one worker rounds otherwise than two does not grow in hundreds of steps.
RATES = ["--optimizer.sparse-learning-rate=0.002", "--optimizer.dense-learning-rate=1e-4"]
SETTINGS = {"num_cpus": 0, "include_dashboard": False, "dashboard_agent_listen_port": None}
# A node that is gone is missed after some seconds, rather than half a minute.
WATCH = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Starts a head that runs no worker, and a node for one worker."""
    ray_cluster = Cluster(initialize_head=True, head_node_args={**SETTINGS, "_system_config": WATCH})
    ray_cluster.add_node(num_cpus=1)
    yield ray_cluster
    ray_cluster.shutdown()


def wait_for(pattern: str, log: Path, job: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 240
    while not (found := re.search(pattern, log.read_text())):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    return found[0]


@pytest.fixture(scope="module")
def audited(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_rows(tmp_path_factory.mktemp("audited"))


def start(dataset: Path, run_dir: Path, log: Path, flags: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Starts a job that records the rows of each step."""
    command = [sys.executable, "-m", "tests.support.audit", f"--data.path={dataset}", f"--run-dir={run_dir}"]
    command += [f"--train.epochs={EPOCHS}", "--train.patience=0", f"--train.global-batch={BATCH}", "--train.log-every=1"]
    command += ["--checkpoint.every-steps=10", *RATES, *flags]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=output, stderr=output)


def step_of(line: str) -> int:
    found = re.search(r"step (\d+)", line)
    assert found is not None
    return int(found[1])


def losses(run_dir: Path) -> np.ndarray:
    store = CheckpointStore(str(run_dir / "checkpoints"))
    points = store.marker(store.committed()[0])["note"]["progress"]["training"]
    assert [point["step"] for point in points] == list(range(1, len(points) + 1))
    return np.array([point["loss"] for point in points])


def test_workers_come_and_go_and_no_row_is_lost(audited: Path, tmp_path: Path, cluster: Cluster) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    flags = ["--launch.workers=2", "--launch.min-workers=1", "--launch.ray.resize-seconds=3", "--launch.max-failures=3"]
    second = cluster.add_node(num_cpus=1)
    job = start(audited, run_dir, log, flags, RAY_ADDRESS=cluster.address)
    try:
        wait_for(r"epoch 1/\d+ +step +15 ", log, job)
        cluster.remove_node(second, allow_graceful=False)
        alone = wait_for(r"resuming after step \d+, .* with 1 workers", log, job)
        wait_for(rf"step +{step_of(alone) + 15} ", log, job)
        cluster.add_node(num_cpus=1)
        again = wait_for(r"resuming after step \d+, .* with 2 workers", log, job)
        assert job.wait(300) == 0, log.read_text()[-3000:]
    finally:
        job.kill()
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["epochs"] == EPOCHS
    assert 10 <= step_of(alone) < step_of(again)
    assert_every_row_once_an_epoch(rows_by_step(run_dir, outcome["steps"]), BATCH)
    whole = tmp_path / "whole"
    run_workers(train, 2, dataclasses.replace(from_json((run_dir / "config.json").read_text(), model_config), run_dir=str(whole)))
    assert np.abs(losses(run_dir) - losses(whole)).max() < 1e-4
