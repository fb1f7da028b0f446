"""Autoscaling for real: the node types of cluster.yaml on one machine. A head without workers, a submitted job that asks for two,
nodes that come for it and go when they are idle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config

from tests.processes import free_ports

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
START_SECONDS = 120
JOB_SECONDS = 400
IDLE_SECONDS = 20  # longer than a driver takes, on a busy machine, from the arrival of its nodes to using them


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A head and its autoscaler, alone in a folder and on ports of their own; all that they started is gone afterwards."""
    folder = tempfile.mkdtemp(prefix="ray-scale-")  # short, because sockets live there
    port, dashboard, agent = free_ports(3)
    config = tmp_path / "cluster.json"
    cluster = on_this_machine(f"{ray.util.get_node_ip_address()}:{port}")
    config.write_text(json.dumps(cluster))
    cpus = cluster["available_node_types"][FAKE_HEAD_NODE_TYPE]["resources"]["CPU"]
    command = [BIN / "ray", "start", "--head", "--block", f"--num-cpus={cpus}", f"--autoscaling-config={config}"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    environment = _environment(folder)
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        left = _end_all_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def on_this_machine(gcs_address: str) -> dict[str, Any]:
    """cluster.yaml with processes for machines: same names, limits and custom resources, one CPU a node and no GPU."""
    cluster = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    # No machine is set up, but the autoscaler wants every key that belongs to that.
    emptied = {key: type(value)() for key, value in cluster.items() if isinstance(value, (list, dict))}
    types = cluster["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(cluster["head_node_type"])  # the only name that the provider has for it
    for name, node_type in types.items():
        node_type["node_config"] = {}
        node_type["resources"] |= {} if name == FAKE_HEAD_NODE_TYPE else {"CPU": 1, "object_store_memory": 100_000_000}
    # By its class, not as "fake_multinode": Ray's wheel lacks the file of defaults that belongs to the name.
    module = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    provider = {"type": "external", "module": module, "gcs_address": gcs_address, "launch_multiple": True}
    unlike_machines = {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    return (
        cluster
        | emptied
        | {
            "provider": provider | unlike_machines,
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "available_node_types": types,
            "idle_timeout_minutes": IDLE_SECONDS / 60,
        }
    )


def _environment(folder: str) -> dict[str, str]:
    """As `ray up` starts a head: with autoscaler v2, which finds its own node by these names."""
    scaling = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    own = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_TMPDIR": folder,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | scaling | own


def _end_all_of(folder: str) -> list[psutil.Process]:
    """Fake nodes' log monitors outlive their raylets; a failed test leaves those as well. Returns what would not end."""
    mine = [process for process in psutil.process_iter() if _belongs(process, folder)]
    for process in mine:
        process.kill()
    return psutil.wait_procs(mine, timeout=20)[1]


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return process.environ().get("RAY_TMPDIR") == folder
    except psutil.Error:
        return False


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def workers(head: Head) -> list[dict[str, float]]:
    """What each living node but the head has."""
    nodes = _get(f"{head.address}/api/v0/nodes")["data"]["result"]["result"]
    return [node["resources_total"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]]


def submit(head: Head, *arguments: str) -> str:
    """The job's name. The head takes none before its agent is up, hence the tries."""
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--no-wait", "--working-dir", "."]
    deadline = time.monotonic() + START_SECONDS
    while True:
        name = f"train-{time.monotonic_ns()}"
        job = ["--submission-id", name, "--", "python", "jobs/train_dlrm.py", *arguments]
        tried = subprocess.run([*command, *job], cwd=ROOT, env=head.environment, capture_output=True, text=True)
        if tried.returncode == 0:
            return name
        if time.monotonic() > deadline:
            raise TimeoutError(f"no job server at {head.address}: {tried.stderr[-500:]}")
        time.sleep(1)


def watch(head: Head, job: str) -> list[dict[str, float]]:
    """Until the job has ended well: the most nodes that were there at a time."""
    most: list[dict[str, float]] = []
    deadline = time.monotonic() + JOB_SECONDS
    while True:
        most = max(most, workers(head), key=len)
        state = _get(f"{head.address}/api/jobs/{job}")["status"]
        if state == "SUCCEEDED":
            return most
        if state in ("FAILED", "STOPPED") or time.monotonic() > deadline:
            raise AssertionError(f"{state}: {_get(f'{head.address}/api/jobs/{job}/logs')['logs'][-3000:]}")
        time.sleep(0.5)


def test_nodes_come_for_a_job_and_go_when_idle(head: Head, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [f"--data.path={dataset}", f"--run-dir={run_dir}", "--train.epochs=1", "--train.max-steps=20"]
    arguments += ["--train.global-batch=1024"]
    job = submit(head, *arguments, "--launch.workers=2", "--launch.ray.resources", "training", "1")
    came = watch(head, job)
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["launcher"] == "ray"
    # One CPU a node, so two of them; and spot before on-demand, as the priorities in cluster.yaml say.
    assert [(node["training"], node["spot"]) for node in came] == [(4, 1), (4, 1)]

    deadline = time.monotonic() + 5 * IDLE_SECONDS
    while workers(head):
        assert time.monotonic() < deadline, "idle nodes stayed"
        time.sleep(0.5)
