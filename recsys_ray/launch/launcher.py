"""The one promise for every engine, and the table of engines. An adapter is imported only when its engine is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from recsys_ray.config import TrainConfig

ENGINES = {"ray": "recsys_ray.launch.ray_launcher:RayLauncher"}


class Launcher(Protocol):
    """Runs `train(config)` once on every worker and returns when all are done. Each worker finds RANK, WORLD_SIZE, LOCAL_RANK,
    LOCAL_WORLD_SIZE and MASTER_* set. Any worker's failure is raised here. Results live in the run directory."""

    def run(self, train: Callable[[TrainConfig], None], config: TrainConfig) -> None: ...


def launcher(engine: str) -> Launcher:
    module, name = ENGINES[engine].split(":")
    return getattr(import_module(module), name)()
