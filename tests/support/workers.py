"""Workers of a real gloo process group on this machine, without a launcher, and the MLflow database that they log to."""

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
    """Calls work(*args) in `workers` processes whose environment has RANK, WORLD_SIZE and so on, as under torchrun.

    Raises what any of them raises. They are forked from a server that has already imported what training needs, which saves
    each of them seconds.
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
    """Returns the URI of a folder's MLflow database. A missing one is copied, because MLflow takes a second to create one."""
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
