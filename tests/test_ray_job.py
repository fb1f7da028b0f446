"""`ray start --head` and `ray job submit` as a user types them, with token authentication, on a cluster of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_head import BIN, Head, ray_head, submit


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """Starts a head as the README says: RAY_AUTH_MODE=token and one token for all, here in the test's own home directory."""
    token = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env={**os.environ, **token}, check=True, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").read_text().strip()
    with ray_head(tmp_path / "head.log", lambda gcs: ["--num-cpus=2"], **token) as started:
        yield started


def test_job_submitted_with_a_token_trains_and_without_one_is_refused(head: Head, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = ["--", "python", "jobs/train_dlrm.py"]
    arguments = [f"--data.path={dataset}", f"--run-dir={run_dir}", "--train.epochs=1", "--train.global-batch=1024"]
    done = submit(head, *job, *arguments, "--launch.workers=2", "--launch.cpus-per-worker=0.5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test AUC" in done.stdout
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["launcher"] == "ray" and outcome["test_auc"] > 0.6

    bad = submit(head, *job, f"--data.path={tmp_path / 'nothing'}", f"--run-dir={tmp_path / 'bad'}")
    assert bad.returncode != 0
    assert "nothing is not a dataset directory" in bad.stdout

    (tmp_path / "stranger").mkdir()
    stranger = dataclasses.replace(head, environment={**head.environment, "HOME": str(tmp_path / "stranger")})
    refused = submit(stranger, *job, "--help")
    assert refused.returncode != 0 and "token" in (refused.stdout + refused.stderr).lower()
