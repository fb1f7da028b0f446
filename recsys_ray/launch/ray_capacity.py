"""Checks whether a Ray cluster has room for the workers, or can grow to have it.

A request that the cluster can never satisfy is an error, not an endless wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

import ray

from recsys_ray.compat.ray_compat import AutoscalerReport, CapacityRequest, cluster_config, readonly_node_type
from recsys_ray.config import LaunchConfig

log = logging.getLogger(__name__)
Resources = dict[str, float]
FLAGS = {"CPU": "--launch.cpus-per-worker", "GPU": "--launch.gpus-per-worker"}
SMALLEST_AMOUNT = 1e-4
"""The smallest amount of a resource that can be asked for: Ray counts in ten-thousandths."""
REPORT_SECONDS = 10
REQUEST_SECONDS = 60


class NodeType(NamedTuple):
    """A kind of node that an autoscaler may start, at most `max_count` of them."""

    name: str
    resources: Resources
    max_count: int


def worker_resources(launch: LaunchConfig) -> Resources:
    """Returns what one worker reserves. Raises ValueError when that is nothing, or less than Ray can count."""
    gpus = launch.gpus_per_worker if launch.gpus_per_worker is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    bundle = {"CPU": launch.cpus_per_worker, "GPU": gpus, **launch.ray.resources}
    if not any(bundle.values()):
        raise ValueError("--launch.cpus-per-worker 0: a worker without a GPU must ask for something")
    for name, amount in bundle.items():
        if amount and amount < SMALLEST_AMOUNT:
            flag = FLAGS.get(name, f"--launch.ray.resources {name}")
            raise ValueError(f"{flag} {amount:g}: Ray counts in steps of {SMALLEST_AMOUNT:g}: ask for that or more, or for 0")
    return {name: amount for name, amount in bundle.items() if amount}


def wait_for_capacity(bundle: Resources, launch: LaunchConfig) -> None:
    """Returns when the cluster's nodes have room for the workers, each of which reserves `bundle`; they may be busy.

    Raises ValueError, saying what is lacking and what is there, at once if no node can come that would help, and after
    launch.ray.wait_seconds if an autoscaler has not brought enough.
    """
    fewest, placement = launch.min_workers or launch.workers, launch.ray.placement
    if workers_that_fit(bundle, _nodes(), placement) >= fewest:
        return
    _check_node_types(bundle, fewest, placement)
    log.info("waiting for nodes: %d workers of %s", launch.workers, _format_resources(bundle))
    request = CapacityRequest()
    deadline = time.monotonic() + launch.ray.wait_seconds
    try:
        while workers_that_fit(bundle, _nodes(), placement) < fewest:
            if time.monotonic() > deadline:
                raise ValueError(f"{_describe_lack(bundle, fewest, placement)}, and none came in {launch.ray.wait_seconds:g} s")
            request.renew([bundle] * launch.workers, REQUEST_SECONDS)
            time.sleep(1)
    finally:
        request.cancel()


def workers_that_fit(bundle: Resources, nodes: Iterable[Resources], placement: str) -> int:
    """Returns how many workers that reserve `bundle` each have room on nodes with these resources, under a Ray placement."""
    rooms = [_room(bundle, node) for node in nodes]
    match placement:
        case "STRICT_SPREAD":
            return sum(room > 0 for room in rooms)
        case "STRICT_PACK":
            return max(rooms, default=0)
        case _:
            return sum(rooms)


def _room(bundle: Resources, node: Resources) -> int:
    # In whole steps, as Ray counts: ten workers of 0.1 fit into 1.
    steps = ((round(node.get(name, 0) / SMALLEST_AMOUNT), round(amount / SMALLEST_AMOUNT)) for name, amount in bundle.items())
    return min(there // wanted for there, wanted in steps)


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _check_node_types(bundle: Resources, workers: int, placement: str) -> None:
    """Raises ValueError if all nodes that may be started would not have room."""
    types = _node_types()
    if types is None:
        return
    if not types:
        raise ValueError(f"{_describe_lack(bundle, workers, placement)}, and it does not scale: ask for less, or add nodes")
    nodes = [kind.resources for kind in types for _ in range(kind.max_count)]
    if workers_that_fit(bundle, nodes, placement) < workers:
        largest = "; ".join(f"up to {kind.max_count} {kind.name} of {_format_resources(kind.resources)}" for kind in types)
        raise ValueError(
            f"{_describe_lack(bundle, workers, placement)}. It grows to no more than {largest}: ask for less, or raise its limits"
        )


def _node_types() -> list[NodeType] | None:
    """The nodes that the autoscaler may start: none if there is no autoscaler, None if it does not say.

    Its first report comes some seconds after a cluster's start; version 2 may make none. Without an autoscaler, the report
    names every node's type after the node itself.
    """
    report = AutoscalerReport()
    deadline = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < deadline:
        config = cluster_config()
        if config is not None and config.node_group_configs:
            return [NodeType(group.name, dict(group.resources), group.max_count) for group in config.node_group_configs]
        if types := report.active_node_types():
            return [] if types.keys() <= {readonly_node_type(node["NodeID"]) for node in ray.nodes()} else None
        time.sleep(0.5)
    return None


def _describe_lack(bundle: Resources, workers: int, placement: str) -> str:
    nodes = _nodes()
    room, have = workers_that_fit(bundle, nodes, placement), "; ".join(_format_resources(node) for node in nodes)
    needed = f"{workers} workers need {_format_resources(bundle)} each"
    return f"{needed}, and the Ray cluster has room for {room}: its nodes have {have}"


def _format_resources(resources: Resources) -> str:
    """Leaves out what Ray adds to every node."""
    hidden = ("node:", "object_store_memory", "memory")
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if not name.startswith(hidden)) or "nothing"
