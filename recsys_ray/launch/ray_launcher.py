"""Launches workers by Ray Train (V2), fixed or elastic, on the Ray cluster that `ray_cluster` connects to."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.util
import yaml
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from recsys_ray.compat.ray_compat import (
    PREEMPTION_WATCHER_VARIABLE,
    WORKER_START_TIMEOUT_VARIABLE,
    LeanTrainer,
    start_capacity_coordinator,
)
from recsys_ray.config import LaunchConfig
from recsys_ray.environment import environment
from recsys_ray.launch.ray_capacity import wait_for_capacity, worker_resources
from recsys_ray.launch.ray_cluster import ray_cluster
from recsys_ray.launch.worker import Config, launched_run, run_worker, thread_settings
from recsys_ray.launch.worker_records import explain_failure
from recsys_ray.logs import configure_logging

ELASTIC_START_SECONDS = "10"
"""How long Ray Train waits for workers to start before it asks for them again, by default 60 s.

It counts a lost node for up to 20 s more, and until then asks for as many workers as before.
"""


class RayLauncher:
    """A Launcher by Ray Train on the connected cluster. `session_ends`: the connection ends with the launcher."""

    def __init__(self, session_ends: bool) -> None:
        self._session_ends = session_ends

    def run(self, work: Callable[[Config], None], config: Config) -> None:
        """Runs `work` once on every worker. Raises WorkerFailed."""
        bundle = worker_resources(config.launch)
        wait_for_capacity(bundle, config.launch)
        packed = cloudpickle.dumps((work, config))
        trainer = LeanTrainer(
            lambda: _run_packed(packed),
            session_ends=self._session_ends,
            scaling_config=scaling(config.launch, bundle),
            backend_config=RendezvousConfig(),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(config.run_dir).absolute()),
                failure_config=FailureConfig(max_failures=config.launch.max_failures),
                worker_runtime_env=_runtime_env(config.launch.ray.runtime_env, gpus="GPU" in bundle),
            ),
        )
        try:
            with launched_run(config), _usual_ctrl_c(), environment(_ray_train_settings(config.launch)):
                trainer.fit()
        except TrainingFailedError as error:
            raise explain_failure(config.run_dir, _vanished_workers(error)) or error from None


class RendezvousConfig(BackendConfig):
    """The configuration, without settings, of a Rendezvous."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Returns the class that Ray Train calls as workers start."""
        return Rendezvous


class Rendezvous(Backend):
    """Sets RANK and the like on every worker, as torch elastic does, and leaves the process group to `work`.

    Ray's TorchConfig makes the group itself, and imports torch in the launching process and in Ray Train's controller, one after
    the other, before any worker starts.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Has all workers meet at the node of rank 0."""
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_place, address, port)


def _free_address() -> tuple[str, int]:
    """The address of this node, and a port of it that is free."""
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _set_place(address: str, port: int) -> None:
    """Sets the environment variables that every Launcher promises."""
    place = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(place.get_world_rank()),
        "WORLD_SIZE": str(place.get_world_size()),
        "LOCAL_RANK": str(place.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(place.get_local_world_size()),
    }


def _run_packed(packed: bytes) -> None:
    """Runs a worker. Logging is set up before its function and its configuration are unpickled.

    Unpickling may import fbgemm, which announces each of its libraries to the root logger, and Ray shows those lines to the user.
    """
    configure_logging()
    work, config = cloudpickle.loads(packed)
    run_worker(work, config)


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[RayLauncher]:
    """Connects to the Ray cluster."""
    session_ends = not ray.is_initialized()
    with ray_cluster(config.ray):
        start_capacity_coordinator()
        yield RayLauncher(session_ends)


def scaling(launch: LaunchConfig, bundle: dict[str, float]) -> ScalingConfig:
    """Returns Ray Train's configuration of the workers, each of which reserves `bundle`."""
    return ScalingConfig(
        num_workers=launch.workers if launch.min_workers is None else (launch.min_workers, launch.workers),
        use_gpu="GPU" in bundle,
        resources_per_worker=bundle,
        placement_strategy=launch.ray.placement,
        elastic_resize_monitor_interval_s=launch.ray.resize_seconds,
    )


@contextmanager
def _usual_ctrl_c() -> Iterator[None]:
    """Makes Ctrl-C in the body a KeyboardInterrupt, and restores its handler.

    Ray Train handles it itself: it ends the workers and then this process, with exit code 0 as if all were done.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _ray_train_settings(launch: LaunchConfig) -> dict[str, str]:
    """Settings that Ray Train takes from environment variables only."""
    elastic = {WORKER_START_TIMEOUT_VARIABLE: ELASTIC_START_SECONDS} if launch.min_workers is not None else {}
    # Workers stay in the job's folder, so that relative paths mean the same there. Nothing asks the watcher, which is an actor.
    return {RAY_CHDIR_TO_TRIAL_DIR: "0", PREEMPTION_WATCHER_VARIABLE: "0"} | elastic


def _runtime_env(file: str, gpus: bool) -> dict[str, Any]:
    """The workers' runtime environment, from a YAML file if there is one, without GPUs unless they asked for them.

    Ray hides no GPU from a worker that asked for none, and one that sees a GPU takes it.
    """
    wanted = yaml.safe_load(Path(file).read_text()) if file else {}
    variables = thread_settings() | wanted.get("env_vars", {})
    return wanted | {"env_vars": variables | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}


def _vanished_workers(error: TrainingFailedError) -> dict[int, str]:
    """Rank -> cause of the workers that Ray has lost; "" if it does not know the cause."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = {rank: getattr(found, "health_check_failure", None) for rank, found in failures.items()}
    return {rank: _cause(cause) for rank, cause in causes.items() if cause is not None}


def _cause(error: Exception) -> str:
    if isinstance(error, OutOfMemoryError):
        return f"Ray, for want of memory: {error}"
    lost = [line.strip() for line in str(error).splitlines() if "node has died" in line or "node was" in line]
    return f"the loss of its node: {' '.join(lost)}" if lost else ""
