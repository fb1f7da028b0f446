"""Ctrl-C and SIGTERM in the middle of training: what was there before is there after, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.processes import MARK, gone, marked, needs_java

ROOT = Path(__file__).parent.parent
SPARK = ["--launch.engine=spark", "--launch.spark.master"]


def start(dataset: Path, tmp_path: Path, mark: str, arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """A training of many epochs, all of whose processes carry `mark` in their environment."""
    command = [sys.executable, "jobs/train_dlrm.py", f"--data.path={dataset}", f"--run-dir={tmp_path / 'run'}"]
    command += ["--train.epochs=500", "--train.patience=0", "--train.global-batch=1024", "--train.log-every=1"]
    command += ["--launch.workers=2", "--launch.cpus-per-worker=0.5", *arguments]
    environment = {**os.environ, MARK: mark, "TMPDIR": str(tmp_path / "tmp"), **environment}
    (tmp_path / "tmp").mkdir()
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for_steps(job: subprocess.Popen[bytes], tmp_path: Path) -> None:
    deadline = time.monotonic() + 180
    while not re.search(r"epoch 1/500 +step +3 ", (tmp_path / "log").read_text()):
        assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.2)


def segments() -> set[str]:
    """Shared memory of Mosaic Streaming."""
    return {path.name for path in Path("/dev/shm").iterdir() if re.match(r"\d{6}_", path.name)}


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        pytest.param(["--launch.engine=local"], signal.SIGTERM, id="local-sigterm"),
        pytest.param(["--launch.engine=ray"], signal.SIGTERM, id="ray-sigterm"),
        pytest.param([*SPARK, "local-cluster[2,1,1024]"], signal.SIGINT, id="spark-cluster-ctrl-c", marks=needs_java),
    ],
)
def test_nothing_is_left(dataset: Path, tmp_path: Path, arguments: list[str], number: signal.Signals) -> None:
    before, mark = segments(), uuid.uuid4().hex
    job = start(dataset, tmp_path, mark, arguments)
    wait_for_steps(job, tmp_path)
    assert segments() > before
    assert len(marked(mark)) > 2
    job.send_signal(number)
    assert job.wait(60) == 130
    assert "run it again to go on" in (tmp_path / "log").read_text()
    assert gone(lambda: marked(mark)) == []
    assert segments() == before
    assert list((tmp_path / "tmp").glob("*_filelock")) == []
    assert list((tmp_path / "tmp").glob("recsys_ray*")) == []
