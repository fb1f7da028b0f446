"""What workers ask of a Ray cluster, and whether it has that or can come to have it: a request that it can never satisfy is an
error, not an endless wait."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable

import ray
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.util import format_readonly_node_type
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator

from recsys_ray.config import LaunchConfig

log = logging.getLogger(__name__)
Resources = dict[str, float]
REPORT_SECONDS = 10
REQUEST_SECONDS = 60


def worker_resources(launch: LaunchConfig) -> Resources:
    """What one worker reserves. Raises ValueError when that is nothing."""
    gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    bundle = {"CPU": launch.cpus_per_worker, "GPU": gpus, **launch.ray.resources}
    if not any(bundle.values()):
        raise ValueError("--launch.cpus-per-worker 0: a worker without a GPU must ask for something")
    return {name: amount for name, amount in bundle.items() if amount}


def wait_for_capacity(bundle: Resources, launch: LaunchConfig) -> None:
    """Returns when the cluster's nodes have room for the workers, busy or not.

    Raises ValueError, saying what is lacking and what is there, at once where no node can come that would help, and after
    launch.ray.wait_seconds where an autoscaler did not bring enough.
    """
    fewest, placement = launch.min_workers or launch.workers, launch.ray.placement
    if workers_that_fit(bundle, _nodes(), placement) >= fewest:
        return
    _check_node_types(bundle, fewest, placement)
    log.info("waiting for nodes: %d workers of %s", launch.workers, _words(bundle))
    # Not the autoscaler itself: it knows one request alone, the last, and Ray Data and Train make theirs through this.
    coordinator = DefaultAutoscalingCoordinator(f"recsys_ray-{uuid.uuid4().hex}")
    deadline = time.monotonic() + launch.ray.wait_seconds
    try:
        while workers_that_fit(bundle, _nodes(), placement) < fewest:
            if time.monotonic() > deadline:
                raise ValueError(f"{_lack(bundle, fewest, placement)}, and none came in {launch.ray.wait_seconds:g} s")
            coordinator.request_resources([bundle] * launch.workers, REQUEST_SECONDS, priority=ResourceRequestPriority.HIGH)
            time.sleep(1)
    finally:
        coordinator.cancel_request()


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def workers_that_fit(bundle: Resources, nodes: Iterable[Resources], placement: str) -> int:
    rooms = [_room(bundle, node) for node in nodes]
    match placement:
        case "STRICT_SPREAD":
            return sum(room > 0 for room in rooms)
        case "STRICT_PACK":
            return max(rooms, default=0)
        case _:
            return sum(rooms)


def _room(bundle: Resources, node: Resources) -> int:
    # Ray itself counts in ten-thousandths: ten workers of 0.1 fit into 1.
    return min(int(round(node.get(name, 0) * 10_000) // round(amount * 10_000)) for name, amount in bundle.items())


def _check_node_types(bundle: Resources, workers: int, placement: str) -> None:
    types = _node_types()
    if types is None:
        return
    if not types:
        raise ValueError(f"{_lack(bundle, workers, placement)}, and it does not scale: ask for less, or add nodes")
    nodes = [resources for _, resources, most in types for _ in range(most)]
    if workers_that_fit(bundle, nodes, placement) < workers:
        largest = "; ".join(f"up to {most} {name} of {_words(resources)}" for name, resources, most in types)
        raise ValueError(
            f"{_lack(bundle, workers, placement)}. It grows to no more than {largest}: ask for less, or raise its limits"
        )


def _node_types() -> list[tuple[str, Resources, int]] | None:
    """What the autoscaler may start: name, resources, how many; nothing where there is none, None where it does not say.

    Its first report comes some seconds after a cluster's start; version 2 may make none. Without an autoscaler, the
    report names every node's type after the node itself.
    """
    control_store = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < deadline:
        config = state.get_cluster_config()
        if config is not None and config.node_group_configs:
            return [(group.name, dict(group.resources), group.max_count) for group in config.node_group_configs]
        status = json.loads(control_store.internal_kv_get(b"__autoscaling_status", None) or "{}")
        if types := (status.get("autoscaler_report") or {}).get("active_nodes"):
            return [] if types.keys() <= {format_readonly_node_type(node["NodeID"]) for node in ray.nodes()} else None
        time.sleep(0.5)
    return None


def _lack(bundle: Resources, workers: int, placement: str) -> str:
    nodes = _nodes()
    room, have = workers_that_fit(bundle, nodes, placement), "; ".join(_words(node) for node in nodes)
    return f"{workers} workers need {_words(bundle)} each, and the Ray cluster has room for {room}: its nodes have {have}"


def _words(resources: Resources) -> str:
    """Without what Ray adds to every node."""
    hidden = ("node:", "object_store_memory", "memory")
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if not name.startswith(hidden)) or "nothing"
