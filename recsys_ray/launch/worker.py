"""Runs a function, such as `train`, on a worker, and records who ran it and how it ended. Every engine starts it everywhere."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from recsys_ray.config import LaunchedConfig
from recsys_ray.environment import environment
from recsys_ray.launch.stopping import end_worker, stoppable_run
from recsys_ray.launch.worker_records import WorkerRecord, attempt_folder, clear_records, crash_file

PR_SET_PDEATHSIG = 1
"""As in Linux's prctl.h."""
SPIN_COUNT = {"GOMP_SPINCOUNT": "1000"}
"""How long the threads of libgomp, on which PyTorch computes, wait for one another in a busy loop. Its own 300,000 take
milliseconds, in which a thread that another process keeps from its core also keeps the others from theirs."""


Config = TypeVar("Config", bound=LaunchedConfig)


def run_worker(work: Callable[[Config], None], config: Config, attempt: str = "") -> None:
    """Runs `work(config)` on this worker, and raises whatever it does after recording it. RANK must be set.

    Args:
        attempt: a name that all workers started together share, and no others. "" takes it from their rendezvous.
    """
    folder = attempt_folder(config.run_dir, attempt or _rendezvous())
    folder.mkdir(parents=True, exist_ok=True)
    record = WorkerRecord.of_this_process(int(os.environ["RANK"]))
    record.write(folder)
    with crash_file(folder, record.rank).open("w") as crash:
        faulthandler.enable(crash)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end_worker)
            _end_with_parent()
        try:
            work(config)
        except BaseException as error:
            record.ended_by(error).write(folder)
            raise
        finally:
            faulthandler.disable()
    record.finished().write(folder)


@contextmanager
def launched_run(config: LaunchedConfig) -> Iterator[None]:
    """Does what every engine does around a run: SIGTERM stops it, and records are kept only of one that fails."""
    clear_records(config.run_dir)
    with stoppable_run(config):
        yield
    clear_records(config.run_dir)


def without_gpus(hide: bool) -> AbstractContextManager[None]:
    """Hides the GPUs of this machine, if `hide`, from workers that are started in the body: one that sees a GPU takes it."""
    return environment({"CUDA_VISIBLE_DEVICES": ""} if hide else {})


def thread_settings() -> dict[str, str]:
    """Returns the environment variables that a worker's process must start with, unless the user has chosen how threads wait."""
    return {} if os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} else SPIN_COUNT


def _rendezvous() -> str:
    """Every attempt meets at a port of its own; torch elastic's attempts share one, and are counted."""
    return "-".join(os.environ.get(name, "0") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))


def _end_with_parent() -> None:
    """Makes the system kill this worker when its parent ends, on Linux.

    A worker that waits in NCCL cannot unwind, and would keep its GPU's memory from the next attempt.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
