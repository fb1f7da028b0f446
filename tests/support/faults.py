"""Failures injected into a training run from outside: at a line that it logs, and into the batches that it reads."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys_ray.columns import Columns
from recsys_ray.config import TrainConfig
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.training.train import train
from tests.support.damage import flip_a_byte
from tests.support.runs import logged_train

WRITE_SECONDS = 60


class _AtLine(logging.Handler):
    def __init__(self, pattern: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._pattern, self._action, self._done = re.compile(pattern), action, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._done and self._pattern.search(record.getMessage()):
            self._done = True
            self._action()


def at_line(pattern: str, action: Callable[[], None]) -> None:
    """Calls `action` once, when this process first logs a line that matches; the code that logs it sees what `action` raises.

    Rank 0 alone logs steps and validations.
    """
    logging.getLogger("recsys_ray").addHandler(_AtLine(pattern, action))


def train_until_step_30(config: TrainConfig) -> None:
    """Fails on rank 0 after step 30, as a lost worker would: steps after the last checkpoint are lost."""

    def fail() -> None:
        raise RuntimeError("stopped")

    at_line(r"step +30 ", fail)
    train(config)


def train_until_validation(config: TrainConfig) -> None:
    """Fails in the first validation, once the checkpoint before it is written but before it records any score."""

    def fail() -> None:
        wait_for_commit(newest_folder(config))
        raise RuntimeError("killed")

    at_line(r"epoch \d+: validation", fail)
    train(config)


def train_and_damage_last(config: TrainConfig) -> None:
    """Flips a byte of the last epoch's checkpoint as soon as it is written; logs to files, as logged_train does."""

    def damage() -> None:
        folder = newest_folder(config)
        wait_for_commit(folder)
        flip_a_byte(folder / "__0_0.distcp")

    at_line(rf"epoch {config.train.epochs}: validation", damage)
    logged_train(config)


def train_and_send_sigterm(config: TrainConfig) -> None:
    """Sends SIGTERM to rank 1, and to no other process, after rank 0 has logged step 11."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    at_line(r"step +11 ", lambda: os.kill(int((run_dir / "pid-1").read_text()), signal.SIGTERM))
    train(config)


def newest_folder(config: TrainConfig) -> Path:
    """Returns the newest checkpoint folder, which may still be being written."""
    folders = Path(config.run_dir, "checkpoints").glob("step_*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("step_")))


def wait_for_commit(folder: Path) -> None:
    deadline = time.monotonic() + WRITE_SECONDS
    while not (folder / "committed.json").exists():
        assert time.monotonic() < deadline, f"{folder} was not committed in {WRITE_SECONDS} s"
        time.sleep(0.01)


@contextmanager
def batches_through(change: Callable[[Iterator[Columns]], Iterator[Columns]]) -> Iterator[None]:
    """Passes the batches of every stream of this process through `change` while the context lasts."""
    read = BlockStream.__iter__
    BlockStream.__iter__ = lambda stream: change(read(stream))  # type: ignore[method-assign]
    try:
        yield
    finally:
        BlockStream.__iter__ = read  # type: ignore[method-assign]
