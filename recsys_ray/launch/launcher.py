"""Chooses the engine that starts the workers. An adapter is imported only when its engine is asked for.

A fourth engine is one new file with `launcher(config)`, a context manager that yields a Launcher; its name goes into LAUNCHERS
and LaunchConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Protocol

from recsys_ray.config import LaunchConfig
from recsys_ray.launch.stopping import sigterm_as_stop_request
from recsys_ray.launch.worker import Config
from recsys_ray.logs import configure_logging

LAUNCHERS = {
    "ray": "recsys_ray.launch.ray_launcher",
    "spark": "recsys_ray.launch.spark_launcher",
    "local": "recsys_ray.launch.local_launcher",
}
"""Engine -> the module of its adapter."""


class Launcher(Protocol):
    """An engine that runs `work(config)`, such as `train(config)`, once on every worker.

    Each worker finds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_* set. Results live in the run directory.
    """

    def run(self, work: Callable[[Config], None], config: Config) -> None:
        """Returns when all workers are done. Raises WorkerFailed for any worker's failure."""


@contextmanager
def launcher(config: LaunchConfig) -> Iterator[Launcher]:
    """Connects to the engine's cluster, or starts one and stops it at the end, also after Ctrl-C or SIGTERM.

    Raises ValueError for an engine that is not in the table, or an impossible number of workers.
    """
    configure_logging()
    if config.engine not in LAUNCHERS:
        raise ValueError(f"--launch.engine {config.engine} is not one of {', '.join(LAUNCHERS)}")
    if config.min_workers is not None and config.engine != "ray":
        raise ValueError(f"--launch.min-workers: {config.engine} starts a fixed number of workers; only ray is elastic")
    fewest = config.workers if config.min_workers is None else config.min_workers
    if not 1 <= fewest <= config.workers:
        raise ValueError(f"--launch.workers {config.workers}, --launch.min-workers {fewest}: wants at least 1, and min <= max")
    with sigterm_as_stop_request(), import_module(LAUNCHERS[config.engine]).launcher(config) as engine:
        yield engine
