"""Gives public names to what Ray does not make public: what its autoscaler may start, and how to ask it for nodes.

Why each private part is needed:

* `cluster_config` and `AutoscalerReport`: the only two places that say which nodes an autoscaler may start.
* `readonly_node_type`: the name that the report gives to a node where there is no autoscaler.
* `CapacityRequest`: the public `ray.autoscaler.sdk.request_resources` keeps only the last request. Ray Data and Ray Train make
  theirs through the coordinator that is used here.
* `WORKER_START_TIMEOUT_VARIABLE`, `PREEMPTION_WATCHER_VARIABLE`: Ray Train takes these settings from nowhere else, and exports
  their names nowhere.
* `LeanTrainer`: every trainer starts an actor for Ray Data's datasets, also where it is given none, and one that frees resources
  after a controller that died, also where Ray frees them because the job ends.
* `start_capacity_coordinator`: Ray Train starts this actor once its controller runs, and waits for it.
* `enable_token_authentication`: `ray start` decides by the same function whether a cluster wants a token.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from recsys_ray.compat.versions import require_version

require_version("ray", ["2.60"])

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.util import format_readonly_node_type as readonly_node_type
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    DefaultAutoscalingCoordinator,
    get_or_create_autoscaling_coordinator,
)
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR as PREEMPTION_WATCHER_VARIABLE
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR as WORKER_START_TIMEOUT_VARIABLE
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = [
    "PREEMPTION_WATCHER_VARIABLE",
    "WORKER_START_TIMEOUT_VARIABLE",
    "AutoscalerReport",
    "CapacityRequest",
    "LeanTrainer",
    "cluster_config",
    "enable_token_authentication",
    "readonly_node_type",
    "start_capacity_coordinator",
]


def cluster_config() -> Any:
    """Returns what the cluster can grow to, as `node_group_configs`, or None before its autoscaler has said so."""
    return state.get_cluster_config()


class AutoscalerReport:
    """The report that an autoscaler writes every few seconds; version 2 may write none."""

    def __init__(self) -> None:
        self._control_store = GcsClient(address=ray.get_runtime_context().gcs_address)

    def active_node_types(self) -> dict[str, int]:
        """Returns how many nodes there are of each type, or nothing where there is no report yet."""
        status = json.loads(self._control_store.internal_kv_get(b"__autoscaling_status", None) or "{}")
        return (status.get("autoscaler_report") or {}).get("active_nodes") or {}


class CapacityRequest:
    """A request to the autoscaler for room, independent of those of Ray Data and Ray Train."""

    def __init__(self) -> None:
        self._coordinator = DefaultAutoscalingCoordinator(f"recsys_ray-{uuid.uuid4().hex}")

    def renew(self, bundles: list[dict[str, float]], seconds: int) -> None:
        """Asks for room for all of `bundles` together, for so many seconds."""
        self._coordinator.request_resources(bundles, seconds, priority=ResourceRequestPriority.HIGH)

    def cancel(self) -> None:
        """Takes the request back."""
        self._coordinator.cancel_request()


def start_capacity_coordinator() -> None:
    """Starts the actor that collects such requests, unless it runs, without waiting for it."""
    get_or_create_autoscaling_coordinator()


class LeanTrainer(DataParallelTrainer):
    """Ray Train's trainer for workers that read their data themselves.

    Args:
        session_ends: whether the connection to Ray, and with it what a dead controller has reserved, ends with the run.
        settings: those of Ray's trainer.
    """

    def __init__(self, *settings: Any, session_ends: bool, **named_settings: Any) -> None:
        self._unused = (DatasetsCallback, PlacementGroupCleanerCallback) if session_ends else (DatasetsCallback,)
        super().__init__(*settings, **named_settings)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._unused)]


def enable_token_authentication() -> None:
    """Makes this process show its token to Ray, if it has one: a cluster that finds a token at its start wants it shown."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
