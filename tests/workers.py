"""Real process groups without a cluster: `run_workers` starts gloo workers as torch elastic would, by environment alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch.multiprocessing as multiprocessing

from tests.processes import free_ports

MLFLOW = "mlflow.store.tracking.sqlalchemy_store"
IMPORTED_ONCE = ["recsys_ray.training.train", "recsys_ray.training.report", "sklearn.metrics", MLFLOW]


def run_workers(work: Callable[..., None], workers: int, *args: Any) -> None:
    """Calls work(*args) in `workers` processes that find RANK, WORLD_SIZE, ... set; any failure is raised here.

    They are forked from a server that has imported once what they will import, which spares each of them seconds.
    """
    (port,) = free_ports(1)
    get_context("forkserver").set_forkserver_preload(IMPORTED_ONCE)
    multiprocessing.start_processes(_worker, (work, workers, port, args), nprocs=workers, start_method="forkserver")


def _worker(rank: int, work: Callable[..., None], workers: int, port: int, args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    work(*args)
