"""`ray start --head` and `ray job submit` as a user types them, with token authentication, on a cluster of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import free_ports

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
START_SECONDS = 120


@pytest.fixture
def token_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """As the README says: RAY_AUTH_MODE=token and one token for all, here in a home directory of the test's own.

    RAY_TMPDIR keeps the head's address to itself, or every later ray.init() on this machine would look for it; it is short
    because sockets live there.
    """
    ray_folder = tempfile.mkdtemp(prefix="ray-job-")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "HOME": str(tmp_path),
        "RAY_TMPDIR": ray_folder,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").read_text().strip()
    yield environment
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture
def cluster(token_environment: dict[str, str]) -> Iterator[str]:
    """The address of a head's job server. Stopped by signal: `ray stop` would stop every other Ray on this machine too."""
    port, dashboard, agent = free_ports(3)
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"]
    # Its default port belongs to this session's own Ray, and without an agent no job can run.
    command.append(f"--dashboard-agent-listen-port={agent}")
    head = subprocess.Popen(command, env=token_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for_jobs_api(address, token_environment)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def _wait_for_jobs_api(address: str, environment: dict[str, str]) -> None:
    """The server answers before the agent that runs jobs is there, so only a job that ran tells."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        command = [BIN / "ray", "job", "submit", "--address", address, "--", "true"]
        tried = subprocess.run(command, env=environment, capture_output=True, text=True)
        if tried.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no job server at {address}: {tried.stderr[-500:]}")
        time.sleep(2)


def submit(address: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/train_dlrm.py"]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_job_submitted_with_a_token_trains_and_without_one_is_refused(
    cluster: str, token_environment: dict[str, str], dataset: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = submit(
        cluster,
        token_environment,
        f"--data.path={dataset}",
        f"--run-dir={run_dir}",
        "--train.epochs=1",
        "--train.global-batch=1024",
        "--launch.workers=2",
        "--launch.cpus-per-worker=0.5",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test AUC" in done.stdout
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["launcher"] == "ray" and outcome["test_auc"] > 0.6

    bad = submit(cluster, token_environment, f"--data.path={tmp_path / 'nothing'}", f"--run-dir={tmp_path / 'bad'}")
    assert bad.returncode != 0
    assert "nothing is not a dataset directory" in bad.stdout

    (tmp_path / "stranger").mkdir()
    stranger = {**token_environment, "HOME": str(tmp_path / "stranger")}
    refused = submit(cluster, stranger, "--help")
    assert refused.returncode != 0 and "token" in (refused.stdout + refused.stderr).lower()
