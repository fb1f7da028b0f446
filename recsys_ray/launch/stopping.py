"""How a run is asked to save and stop: SIGTERM, the way clusters announce that a job or a node is about to end.

It may reach a worker, or the process that launched the run. That one cannot reach its workers under every engine, so it leaves a
file in the run directory, which they all see; workers then save together, and return as if they were done.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from recsys_ray.config import TrainConfig

STOP = ".stop"
LOOK_SECONDS = 1.0


class Stopped(SystemExit):
    """Of a worker that got SIGTERM: it has saved, and goes."""


class StopRequest:
    """In a worker, while it trains: SIGTERM only makes `wanted` true, for `grace` seconds; after them, or a second one, it ends
    the worker."""

    def __init__(self, run_dir: str, grace: float) -> None:
        self._file, self._grace = Path(run_dir, STOP), grace
        self._signalled, self._in_file, self._looked = False, False, 0.0

    def wanted(self) -> bool:
        """By SIGTERM to this worker or, which takes a second at most to be seen, to the launching process."""
        if not self._in_file and time.monotonic() - self._looked > LOOK_SECONDS:
            self._in_file, self._looked = self._file.exists(), time.monotonic()
        return self._signalled or self._in_file

    def obey(self) -> None:
        """Called when all is saved: returns where the launching process asked for it, else raises Stopped."""
        if not self._file.exists():
            raise Stopped(128 + signal.SIGTERM)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # under Ray, which keeps signals from workers
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_sigterm), signal.signal(signal.SIGALRM, end_worker)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGTERM, before[0])
            signal.signal(signal.SIGALRM, before[1])

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            end_worker(number, frame)
        self._signalled = True
        signal.setitimer(signal.ITIMER_REAL, self._grace)


def end_worker(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def stop_requested(run_dir: str) -> bool:
    return Path(run_dir, STOP).exists()


class _Launched:
    """The run that this process has launched, if any."""

    config: TrainConfig | None = None
    asked = False


@contextmanager
def stoppable(config: TrainConfig) -> Iterator[None]:
    """Around an engine's run. Raises KeyboardInterrupt once the workers have saved and returned because SIGTERM came."""
    stop = Path(config.run_dir, STOP)
    stop.unlink(missing_ok=True)
    _Launched.config, _Launched.asked = config, False
    try:
        yield
    except Exception as error:
        if _Launched.asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        _Launched.config = None
        stop.unlink(missing_ok=True)
    if _Launched.asked:
        raise KeyboardInterrupt


@contextmanager
def sigterm_as_request() -> Iterator[None]:
    """The first SIGTERM asks a run that is under way to save and stop; without one, on the second, and when the grace period is
    over, it is Ctrl-C. By itself it would end this process before that could tell its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _ask), signal.signal(signal.SIGALRM, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _ask(number: int, frame: FrameType | None) -> None:
    if _Launched.config is None or _Launched.asked:
        _interrupt(number, frame)
        return
    _Launched.asked = True
    run_dir = Path(_Launched.config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / STOP).touch()
    signal.setitimer(signal.ITIMER_REAL, _Launched.config.checkpoint.grace_seconds)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Ray Train has a handler of its own for Ctrl-C; a job that a shell put into the background has none.
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    (on_ctrl_c if callable(on_ctrl_c) else signal.default_int_handler)(signal.SIGINT, frame)
