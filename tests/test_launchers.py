"""Launchers: the environment of a worker, how its failure reaches the caller, and requests that no cluster here can satisfy."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist

from recsys_ray.config import LaunchConfig, RayConfig, SparkConfig, TrainConfig
from recsys_ray.distributed import join_world, node_layout
from recsys_ray.launch.launcher import launcher
from recsys_ray.launch.ray_capacity import worker_resources, workers_that_fit
from recsys_ray.launch.worker import thread_settings
from recsys_ray.launch.worker_records import WorkerFailed, explain_failure
from recsys_ray.models.dlrm import DLRMConfig
from tests.support.processes import ROOT, needs_java

ENGINES = {
    "local": LaunchConfig("local", 2),
    "ray": LaunchConfig("ray", 2, cpus_per_worker=0.5),
    "spark-driver": LaunchConfig("spark", 2),
    "spark-cluster": LaunchConfig("spark", 2, spark=SparkConfig(master="local-cluster[2,1,1024]")),
}
spark_driver = pytest.param("spark-driver", marks=needs_java)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Spark's workers import the functions of this module by name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sum_of_ranks(config: TrainConfig) -> None:
    with join_world(1) as world:
        total = torch.tensor(float(world.rank))
        dist.all_reduce(total)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
        found = {name: os.environ[name] for name in names} | {"sum": float(total), "threads": torch.get_num_threads()}
    Path(config.run_dir, f"found-{found['RANK']}.json").write_text(json.dumps(found))


def raise_on_rank_1(config: TrainConfig) -> None:
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    with join_world(1) as world:
        if world.rank == 1:
            raise ValueError("column 'clicks' has no rows")
        dist.barrier()


def kill_rank_1(config: TrainConfig) -> None:
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    with join_world(1) as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()


def run(launch: LaunchConfig, train: Callable[[TrainConfig], None], run_dir: Path) -> None:
    """Launches a training, under Spark in a process of its own: Ray's connection does not survive the fork that starts Java."""
    if launch.engine != "spark":
        return launch_here(launch, train, run_dir)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(launch_here, launch, train, run_dir).result()


def launch_here(launch: LaunchConfig, train: Callable[[TrainConfig], None], run_dir: Path) -> None:
    with launcher(launch) as cluster:
        cluster.run(train, TrainConfig(run_dir=str(run_dir), model=DLRMConfig(), launch=launch))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_find_their_place_and_each_other(engine: str, tmp_path: Path, ray_session: None) -> None:
    run(ENGINES[engine], sum_of_ranks, tmp_path)
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert [worker["sum"] for worker in found] == [1.0, 1.0]
    assert [(worker["RANK"], worker["LOCAL_RANK"]) for worker in found] == [("0", "0"), ("1", "1")]
    assert {(worker["WORLD_SIZE"], worker["LOCAL_WORLD_SIZE"], worker["threads"]) for worker in found} == {("2", "2", 1)}
    assert {worker["CUDA_VISIBLE_DEVICES"] for worker in found} == {""}  # nobody asked for a GPU
    assert not (tmp_path / ".workers").exists()


@pytest.mark.parametrize("engine", ["local", "ray", spark_driver])
def test_exception_comes_with_the_workers_own_traceback_on_top(engine: str, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(WorkerFailed) as failed:
        run(ENGINES[engine], raise_on_rank_1, tmp_path)
    lines = str(failed.value).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in raise_on_rank_1" in str(failed.value)
    assert lines[-1].startswith(f"worker rank 1 on host {socket.gethostname()} (process ")
    assert lines[-1].endswith("failed: ValueError: column 'clicks' has no rows")


@pytest.mark.parametrize("engine", ["local", "ray", pytest.param("spark-cluster", marks=[needs_java, pytest.mark.long])])
def test_killed_worker_is_named_with_rank_host_and_signal(engine: str, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(
        WorkerFailed, match=rf"^worker rank 1 on host {socket.gethostname()} \(process \d+\) was killed by SIGKILL"
    ):
        run(ENGINES[engine], kill_rank_1, tmp_path)


def test_resources_that_the_ray_cluster_lacks_are_named_at_once(tmp_path: Path, ray_session: None) -> None:
    launch = LaunchConfig("ray", 2, ray=RayConfig(resources={"accelerator_type:A10G": 1}))
    with pytest.raises(
        ValueError, match=r"2 workers need 1 CPU, 1 accelerator_type:A10G each, .* room for 0: its nodes have 4 CPU"
    ):
        run(launch, sum_of_ranks, tmp_path)


@needs_java
def test_tasks_that_the_spark_cluster_lacks_are_named(tmp_path: Path) -> None:
    launch = LaunchConfig("spark", 3, spark=SparkConfig(mode="cluster", master="local[2]"))
    with pytest.raises(ValueError, match=r"the workers need 3 Spark tasks at once, and local\[2\] has room for 2"):
        run(launch, sum_of_ranks, tmp_path)


@pytest.mark.unit
def test_gpus_that_this_machine_lacks_are_named(tmp_path: Path) -> None:
    launch = LaunchConfig("local", 99, gpus_per_worker=1)
    with pytest.raises(ValueError, match=r"99 workers need 99 GPUs, and this machine has"):
        run(launch, sum_of_ranks, tmp_path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (LaunchConfig("slurm"), "--launch.engine slurm is not one of ray, spark, local"),
        (LaunchConfig("local", 4, min_workers=2), "--launch.min-workers: local starts a fixed number of workers"),
        (LaunchConfig("ray", 2, min_workers=3), "--launch.workers 2, --launch.min-workers 3: wants at least 1, and min <= max"),
        (LaunchConfig("local", 0), "--launch.workers 0, --launch.min-workers 0: wants at least 1"),
    ],
)
def test_settings_that_no_engine_has_are_refused(launch: LaunchConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words), launcher(launch):
        pass


@pytest.mark.unit
@pytest.mark.parametrize(
    ("bundle", "placement", "room"),
    [
        ({"CPU": 2}, "PACK", 5),
        ({"CPU": 0.1}, "PACK", 100),  # as Ray counts: in ten-thousandths, not in floats
        ({"CPU": 1, "GPU": 1}, "PACK", 2),
        ({"CPU": 2}, "STRICT_SPREAD", 2),
        ({"CPU": 2}, "STRICT_PACK", 3),
    ],
)
def test_room_for_workers_is_counted_as_ray_would_place_them(bundle: dict[str, float], placement: str, room: int) -> None:
    assert workers_that_fit(bundle, [{"CPU": 6.0, "GPU": 2}, {"CPU": 4.0}], placement) == room


@pytest.mark.unit
@pytest.mark.parametrize(
    ("launch", "flag"),
    [
        (LaunchConfig(cpus_per_worker=1e-5, gpus_per_worker=0), "--launch.cpus-per-worker 1e-05"),
        (LaunchConfig(gpus_per_worker=4e-5), "--launch.gpus-per-worker 4e-05"),
        (LaunchConfig(gpus_per_worker=0, ray=RayConfig({"disk": 1e-5})), "--launch.ray.resources disk 1e-05"),
    ],
)
def test_less_than_ray_can_count_is_refused(launch: LaunchConfig, flag: str) -> None:
    with pytest.raises(ValueError, match=rf"^{flag}: Ray counts in steps of 0.0001: ask for that or more, or for 0$"):
        worker_resources(launch)


def leave_record(folder: Path, attempt: str, rank: int, began: float, **how: object) -> None:
    (folder / ".workers" / attempt).mkdir(parents=True, exist_ok=True)
    record = {"rank": rank, "host": "here", "pid": 7, "began": began, **how}
    (folder / ".workers" / attempt / f"rank-{rank}.json").write_text(json.dumps(record))
    (folder / ".workers" / attempt / f"rank-{rank}.crash").touch()


@pytest.mark.unit
@pytest.mark.parametrize("chosen", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_how_threads_wait_is_for_the_user_to_choose(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_settings() == {"GOMP_SPINCOUNT": "1000"}
    monkeypatch.setenv(chosen, "active")
    assert thread_settings() == {}


@pytest.mark.unit
def test_failure_is_told_of_the_last_attempt_and_names_all_in_doubt(tmp_path: Path) -> None:
    assert explain_failure(str(tmp_path)) is None
    leave_record(tmp_path, "first", 3, 1.0, state="failed", ended=2.0, error="ValueError: an old one", trace="old")
    leave_record(
        tmp_path, "second", 0, 3.0, state="failed", ended=4.0, error="RuntimeError: Connection closed by peer", trace="t"
    )
    leave_record(tmp_path, "second", 1, 3.1)
    assert str(explain_failure(str(tmp_path))).startswith("worker rank 1 on host here (process 7) was killed by SIGKILL")
    assert "by the loss of its node" in str(explain_failure(str(tmp_path), {1: "the loss of its node"}))
    assert "Connection closed by peer" in str(explain_failure(str(tmp_path), {}))
    leave_record(tmp_path, "second", 2, 3.2)
    lines = str(explain_failure(str(tmp_path))).splitlines()
    assert lines[0] == "one of these:" and ["rank 1" in lines[1], "rank 2" in lines[2], len(lines)] == [True, True, 3]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("hosts", "places"),
    [
        (["a", "a", "b", "b"], [(0, 2, 0), (1, 2, 0), (0, 2, 0), (1, 2, 0)]),
        (["a", "b", "a", "b"], [(0, 1, 0), (0, 1, 0), (0, 1, 1), (0, 1, 1)]),
        (["a", "a", "b"], [(0, 1, 0), (0, 1, 1), (0, 1, 0)]),
    ],
)
def test_hosts_are_nodes_where_they_are_equal_and_in_order(hosts: list[str], places: list[tuple[int, int, int]]) -> None:
    assert [node_layout(hosts, rank) for rank in range(len(hosts))] == places


@pytest.mark.parametrize(
    "engines",
    [
        pytest.param(["ray", "local"], id="ray-local"),
        pytest.param(["spark-cluster", "spark-driver", "local"], id="spark-local", marks=[needs_java, pytest.mark.long]),
    ],
)
def test_every_engine_trains_the_same_rows_to_the_same_weights(engines: list[str], ray_session: None) -> None:
    command = [sys.executable, "benchmarks/launcher_parity.py", "--model=two_tower", "--rows=20000", "--global-batch=1024"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}  # which saves it from starting one
    command += ["--epochs=1", "--engines", *engines]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["identical"] == {"order": True, "losses": True, "weights": True}
    assert found["engines"].keys() == set(engines)
    assert all(result["steps"] > 10 for result in found["engines"].values())
