"""The Ray cluster to run on: the one at RAY_ADDRESS, one started on the nodes of a Spark cluster, or one of this machine alone.
And whether it is large enough: a request that it can never satisfy is an error, not an endless wait."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray
from ray._private.state import state
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.sdk import request_resources
from ray.experimental.internal_kv import _internal_kv_get

from recsys_ray.config import LaunchConfig, RayConfig

log = logging.getLogger(__name__)
Resources = dict[str, float]
REPORT_SECONDS = 10


@contextmanager
def ray_cluster(config: RayConfig) -> Iterator[None]:
    """Connected to a Ray cluster; what was started here is stopped at the end."""
    if ray.is_initialized():
        yield
        return
    with _on_spark(config) if _wants_spark(config) else nullcontext():
        ray.init()
        try:
            yield
        finally:
            ray.shutdown()


def _wants_spark(config: RayConfig) -> bool:
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ and "RAY_ADDRESS" not in os.environ
    return config.on_spark == "always" or (config.on_spark == "auto" and on_databricks)


def _on_spark(config: RayConfig) -> AbstractContextManager[None]:
    # Not at the top: whoever has Ray need not have pyspark.
    from recsys_ray.launch.ray_on_spark import ray_on_spark

    return ray_on_spark(config)


def wait_for_capacity(bundle: Resources, launch: LaunchConfig) -> None:
    """Returns when the cluster's nodes have room for the workers, busy or not.

    Raises ValueError, saying what is lacking and what is there, at once where no node can come that would help, and after
    launch.ray.wait_seconds where an autoscaler did not bring enough.
    """
    fewest = launch.min_workers if launch.min_workers is not None else launch.workers
    if _workers_that_fit(bundle, _nodes()) >= fewest:
        return
    _check_node_types(bundle, fewest)
    log.info("waiting for nodes: %d workers of %s", launch.workers, _words(bundle))
    request_resources(bundles=[bundle] * launch.workers)
    deadline = time.monotonic() + launch.ray.wait_seconds
    try:
        while _workers_that_fit(bundle, _nodes()) < fewest:
            if time.monotonic() > deadline:
                raise ValueError(f"{_lack(bundle, fewest)}, and none came in {launch.ray.wait_seconds:g} s")
            time.sleep(1)
    finally:
        request_resources(bundles=[])


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _workers_that_fit(bundle: Resources, nodes: Iterable[Resources]) -> int:
    needs = [(name, amount) for name, amount in bundle.items() if amount]
    return sum(int(min(node.get(name, 0) // amount for name, amount in needs)) for node in nodes)


def _check_node_types(bundle: Resources, workers: int) -> None:
    types = _node_types()
    if types is None:
        return
    if not types:
        raise ValueError(f"{_lack(bundle, workers)}, and it does not scale: ask for less, or add nodes")
    if sum(_workers_that_fit(bundle, [resources]) * most for _, resources, most in types) < workers:
        largest = "; ".join(f"up to {most} {name} of {_words(resources)}" for name, resources, most in types)
        raise ValueError(f"{_lack(bundle, workers)}. It grows to no more than {largest}: ask for less, or raise its limits")


def _node_types() -> list[tuple[str, Resources, int]] | None:
    """What the autoscaler may start: name, resources, how many; nothing where there is none, None where it does not say.

    Its first report comes some seconds after a cluster's start; version 2 may make none. Without an autoscaler, the
    report names every node's type after the node itself.
    """
    deadline = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < deadline:
        config = state.get_cluster_config()
        if config is not None and config.node_group_configs:
            return [(group.name, dict(group.resources), group.max_count) for group in config.node_group_configs]
        status = json.loads(_internal_kv_get(b"__autoscaling_status") or "{}")
        if types := (status.get("autoscaler_report") or {}).get("active_nodes"):
            return [] if types.keys() <= {format_readonly_node_type(node["NodeID"]) for node in ray.nodes()} else None
        time.sleep(0.5)
    return None


def _lack(bundle: Resources, workers: int) -> str:
    nodes = _nodes()
    room, have = _workers_that_fit(bundle, nodes), "; ".join(_words(node) for node in nodes)
    return f"{workers} workers need {_words(bundle)} each, and the Ray cluster has room for {room}: its nodes have {have}"


def _words(resources: Resources) -> str:
    """Without what Ray adds to every node."""
    hidden = ("node:", "object_store_memory", "memory")
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if not name.startswith(hidden)) or "nothing"
