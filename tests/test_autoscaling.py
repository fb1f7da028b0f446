"""Ray's autoscaler with the node types of cluster.yaml on one machine: nodes start for a submitted job and stop when idle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config

from tests.support.processes import ROOT
from tests.support.ray_head import Head, get, listed, ray_head, submit

pytestmark = pytest.mark.long

JOB_SECONDS = 400
IDLE_SECONDS = 20  # longer than a driver takes, on a busy machine, from the arrival of its nodes to using them


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """Starts a head and its autoscaler (v2, which finds its own node by these names) as `ray up` does."""

    def arguments(gcs: str) -> list[str]:
        cluster, config = on_this_machine(gcs), tmp_path / "cluster.json"
        config.write_text(json.dumps(cluster))
        cpus = cluster["available_node_types"][FAKE_HEAD_NODE_TYPE]["resources"]["CPU"]
        return [f"--num-cpus={cpus}", f"--autoscaling-config={config}"]

    scaling = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with ray_head(tmp_path / "head.log", arguments, RAY_AUTH_MODE="disabled", **scaling) as started:
        yield started


def on_this_machine(gcs_address: str) -> dict[str, Any]:
    """Returns cluster.yaml with processes in place of machines: its names, limits and custom resources, one CPU a node."""
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


def workers(head: Head) -> list[dict[str, float]]:
    """Returns the resources of each live node but the head."""
    return [node["resources_total"] for node in listed(head, "nodes") if node["state"] == "ALIVE" and not node["is_head_node"]]


def watch(head: Head, job: str) -> list[dict[str, float]]:
    """Waits until the job has succeeded. Returns the resources of the most nodes that were up at once."""
    most: list[dict[str, float]] = []
    deadline = time.monotonic() + JOB_SECONDS
    while True:
        most = max(most, workers(head), key=len)
        state = get(f"{head.address}/api/jobs/{job}")["status"]
        if state == "SUCCEEDED":
            return most
        if state in ("FAILED", "STOPPED") or time.monotonic() > deadline:
            raise AssertionError(f"{state}: {get(f'{head.address}/api/jobs/{job}/logs')['logs'][-3000:]}")
        time.sleep(0.5)


def test_nodes_come_for_a_job_and_go_when_idle(head: Head, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [f"--data.path={dataset}", f"--run-dir={run_dir}", "--train.epochs=1", "--train.max-steps=20"]
    arguments += ["--train.global-batch=1024"]
    arguments += ["--launch.workers=2", "--launch.ray.resources", "training", "1"]
    submitted = submit(head, "--no-wait", "--submission-id=train", "--", "python", "jobs/train_dlrm.py", *arguments)
    assert submitted.returncode == 0, submitted.stderr
    came = watch(head, "train")
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert outcome["world_size"] == 2 and outcome["launcher"] == "ray"
    # One CPU a node, so two of them; and spot before on-demand, as the priorities in cluster.yaml say.
    assert [(node["training"], node["spot"]) for node in came] == [(4, 1), (4, 1)]

    deadline = time.monotonic() + 5 * IDLE_SECONDS
    while workers(head):
        assert time.monotonic() < deadline, "idle nodes stayed"
        time.sleep(0.5)
