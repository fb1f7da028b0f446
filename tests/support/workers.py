"""Real process groups without a cluster: `run_workers` starts gloo workers as torch elastic would, by environment alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch.multiprocessing as multiprocessing

from tests.support.processes import free_ports

MLFLOW = "mlflow.store.tracking.sqlalchemy_store"
IMPORTED_ONCE = ["recsys_ray.training.train", "recsys_ray.reporting.report", "sklearn.metrics", MLFLOW]


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


def mlflow_uri(folder: Path) -> str:
    """A database of its own in a folder, as a run makes it; MLflow takes a second for each that it has to make."""
    file = folder / "mlflow.db"
    if not file.exists():
        file.write_bytes(_new_database())
    return f"sqlite:///{file}"


@cache
def _new_database() -> bytes:
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()
