"""Ctrl-C and SIGTERM during training: no process, shared memory, file or cluster resource is left."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import LaunchConfig, SparkConfig, TrainConfig
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from tests.support.processes import MARK, ROOT, marked, needs_java, wait_until_gone
from tests.support.ray_head import Head, listed, ray_head, submit

SPARK_CLUSTER = ["--launch.engine=spark", "--launch.spark.master", "local-cluster[2,1,1024]"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Makes the job's temporary folder, with a short name because Ray's sockets live there."""
    folder = Path(tempfile.mkdtemp(prefix="left-"))
    yield folder
    shutil.rmtree(folder)


def start(dataset: Path, tmp_path: Path, temporary: Path, arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Starts a training job of many epochs."""
    command = [sys.executable, "jobs/train_dlrm.py", f"--data.path={dataset}", f"--run-dir={tmp_path / 'run'}"]
    command += ["--train.epochs=500", "--train.patience=0", "--train.global-batch=1024", "--train.log-every=1"]
    command += ["--launch.workers=2", "--launch.cpus-per-worker=0.5", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary), **environment}
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    _started.append(job)
    return job


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_job_survives_its_test() -> Iterator[None]:
    """Kills the jobs that a failed test has left, which would train on and slow down the tests after it."""
    yield
    while _started:
        _started.pop().kill()


def wait_for_steps(job: subprocess.Popen[bytes], tmp_path: Path) -> None:
    deadline = time.monotonic() + 180
    while not re.search(r"epoch 1/500 +step +3 ", (tmp_path / "log").read_text()):
        assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.2)


def segments() -> set[str]:
    """Returns the shared memory segments of Mosaic Streaming."""
    return {path.name for path in Path("/dev/shm").iterdir() if re.match(r"\d{6}_", path.name)}


def interrupt(job: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals) -> None:
    job.send_signal(number)
    assert job.wait(60) == 130
    assert "run it again to resume" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        pytest.param(["--launch.engine=local"], signal.SIGTERM, id="local-sigterm"),
        pytest.param(["--launch.engine=ray"], signal.SIGTERM, id="ray-sigterm", marks=pytest.mark.long),
        pytest.param(SPARK_CLUSTER, signal.SIGINT, id="spark-cluster-ctrl-c", marks=[needs_java, pytest.mark.long]),
    ],
)
def test_nothing_is_left(dataset: Path, tmp_path: Path, temporary: Path, arguments: list[str], number: signal.Signals) -> None:
    before, mark = segments(), uuid.uuid4().hex
    job = start(dataset, tmp_path, temporary, arguments, **{MARK: mark})
    wait_for_steps(job, tmp_path)
    assert segments() > before
    assert len(marked(mark)) > 2
    assert list(temporary.glob("recsys_ray-*/*")), "the cache of shards is elsewhere"
    interrupt(job, tmp_path, number)
    if number == signal.SIGTERM:
        steps = re.findall(r"epoch \d+/500 +step +(\d+) ", (tmp_path / "log").read_text())
        assert CheckpointStore(str(tmp_path / "run" / "checkpoints")).committed()[0] == max(map(int, steps))
    assert wait_until_gone(lambda: marked(mark)) == []
    assert segments() == before
    assert list(temporary.glob("*_filelock")) == []
    assert list(temporary.glob("recsys_ray-*")) == []


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with ray_head(tmp_path / "head.log", lambda gcs: ["--num-cpus=2"], RAY_AUTH_MODE="disabled") as started:
        assert submit(started, "--", "true").returncode == 0
        yield started


def held(head: Head) -> list[str]:
    """Returns the placement groups, actors and jobs that hold resources, without the autoscaler's coordinator, which stays."""
    groups = [group["placement_group_id"] for group in listed(head, "placement_groups") if group["state"] != "REMOVED"]
    actors = [actor["class_name"] for actor in listed(head, "actors") if actor["state"] != "DEAD"]
    actors = [name for name in actors if name != "_AutoscalingCoordinatorActor"]
    jobs = [job["job_id"] for job in listed(head, "jobs") if job["status"] == "RUNNING"]
    return groups + actors + jobs


def test_nothing_is_left_on_a_ray_cluster_that_goes_on(head: Head, dataset: Path, tmp_path: Path, temporary: Path) -> None:
    before = segments()
    assert held(head) == []
    job = start(dataset, tmp_path, temporary, ["--launch.engine=ray"], RAY_ADDRESS=head.gcs, RAY_AUTH_MODE="disabled")
    wait_for_steps(job, tmp_path)
    assert {"RayTrainWorker", "TrainController"} <= set(held(head)) and segments() > before
    interrupt(job, tmp_path, signal.SIGINT)
    assert wait_until_gone(lambda: held(head), seconds=60) == []
    assert wait_until_gone(lambda: segments() - before) == []


def wait_long(config: TrainConfig) -> None:
    Path(config.run_dir, f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(300)


def interrupt_when_running(run_dir: Path) -> None:
    while len(list(run_dir.glob("pid-*"))) < 2:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)


def interrupted_in_a_session(run_dir: Path) -> tuple[list[int], int]:
    """Interrupts training in a Spark session. Returns the active jobs of the session afterwards, and a count that it makes."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
    threading.Thread(target=interrupt_when_running, args=(run_dir,), daemon=True).start()
    launch = LaunchConfig("spark", 2, spark=SparkConfig(mode="cluster"))
    with pytest.raises(KeyboardInterrupt), launcher(launch) as cluster:
        cluster.run(wait_long, TrainConfig(run_dir=str(run_dir), model=DLRMConfig(), launch=launch))
    return list(spark.sparkContext.statusTracker().getActiveJobsIds()), spark.range(7).count()


@pytest.mark.long
@needs_java
def test_no_spark_job_is_left_in_a_session_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the session exists before training and continues after it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # Spark's workers import the functions of this module by its name
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        assert process.submit(interrupted_in_a_session, tmp_path).result() == ([], 7)
    workers = [int(file.read_text()) for file in tmp_path.glob("pid-*")]
    assert wait_until_gone(lambda: [str(pid) for pid in workers if psutil.pid_exists(pid)]) == []
