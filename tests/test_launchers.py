"""Launchers: what a worker finds, how its failure reaches the caller, and requests that no cluster here can satisfy."""

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
import torch
import torch.distributed as dist

from recsys_ray.config import LaunchConfig, RayConfig, SparkConfig, TrainConfig
from recsys_ray.launch.launcher import launcher
from recsys_ray.launch.worker import WorkerFailed
from recsys_ray.training.world import join_world, node_layout
from tests.processes import needs_java

ROOT = Path(__file__).parent.parent
ENGINES = {
    "local": LaunchConfig("local", 2),
    "ray": LaunchConfig("ray", 2, cpus_per_worker=0.5),
    "spark-driver": LaunchConfig("spark", 2),
    "spark-cluster": LaunchConfig("spark", 2, spark=SparkConfig(master="local-cluster[2,1,1024]")),
}
spark_driver, spark_cluster = (pytest.param(name, marks=needs_java) for name in ("spark-driver", "spark-cluster"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's workers import the functions of this module by its name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sum_of_ranks(config: TrainConfig) -> None:
    with join_world(1) as world:
        total = torch.tensor(float(world.rank))
        dist.all_reduce(total)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        found = {name: os.environ[name] for name in names} | {"sum": float(total), "threads": torch.get_num_threads()}
    Path(config.run_dir, f"found-{found['RANK']}.json").write_text(json.dumps(found))


def raise_on_rank_1(config: TrainConfig) -> None:
    with join_world(1) as world:
        if world.rank == 1:
            raise ValueError("column 'clicks' has no rows")
        dist.barrier()


def kill_rank_1(config: TrainConfig) -> None:
    with join_world(1) as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()


def run(launch: LaunchConfig, train: Callable[[TrainConfig], None], run_dir: Path) -> None:
    """Spark in a process of its own: Ray's connection does not survive the fork by which pyspark starts Java."""
    if launch.engine != "spark":
        return launch_here(launch, train, run_dir)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(launch_here, launch, train, run_dir).result()


def launch_here(launch: LaunchConfig, train: Callable[[TrainConfig], None], run_dir: Path) -> None:
    with launcher(launch) as cluster:
        cluster.run(train, TrainConfig(run_dir=str(run_dir), launch=launch))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_find_their_place_and_each_other(engine: str, tmp_path: Path, ray_session: None) -> None:
    run(ENGINES[engine], sum_of_ranks, tmp_path)
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert [worker["sum"] for worker in found] == [1.0, 1.0]
    assert [(worker["RANK"], worker["LOCAL_RANK"]) for worker in found] == [("0", "0"), ("1", "1")]
    assert {(worker["WORLD_SIZE"], worker["LOCAL_WORLD_SIZE"], worker["threads"]) for worker in found} == {("2", "2", 1)}
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


@pytest.mark.parametrize("engine", ["local", "ray", spark_cluster])
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
    with pytest.raises(ValueError, match=r"3 workers need as many Spark tasks at once, and local\[2\] has room for 2"):
        run(launch, sum_of_ranks, tmp_path)


def test_gpus_that_this_machine_lacks_are_named(tmp_path: Path) -> None:
    launch = LaunchConfig("local", 2, gpus_per_worker=8)
    with pytest.raises(ValueError, match=r"2 workers with --launch.gpus-per-worker 8 need 16 GPUs, and this machine has"):
        run(launch, sum_of_ranks, tmp_path)


def test_engine_that_is_not_in_the_table_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"--launch.engine slurm is not one of ray, spark, local"),
        launcher(LaunchConfig("slurm")),
    ):
        pass


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


@needs_java
def test_every_engine_trains_the_same_rows_to_the_same_weights() -> None:
    command = [sys.executable, "benchmarks/launcher_parity.py", "--rows", "30000", "--dense", "3", "--categorical", "4"]
    done = subprocess.run([*command, "--epochs", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["identical"] == {"order": True, "losses": True, "weights": True}
    assert found["engines"].keys() == {"ray", "spark-driver", "spark-cluster", "local"}
    assert all(result["steps"] > 10 for result in found["engines"].values())
