"""Turns SIGTERM into a checkpoint and an orderly end. Clusters send it to announce that a job or a node is about to go.

What happens, in order:

1. SIGTERM reaches the launching process (the job that the user started), a worker, or all processes of the job at once.
2. The launching process (`sigterm_as_stop_request`) cannot signal its workers under every engine. It leaves a file in the run
   directory, which they all see, and waits for them for --checkpoint.grace-seconds; when these are over, and on a second SIGTERM,
   it does what Ctrl-C does. If no run is under way, SIGTERM acts as Ctrl-C at once.
3. A worker (`StopRequest`) only notes SIGTERM while it trains, and finishes its step. It also looks for the file, once a second.
   When the grace period is over, on a second SIGTERM, and at any time outside training, SIGTERM ends it. Its loader processes
   ignore SIGTERM and end with it.
4. The workers agree on the step to stop after, save a checkpoint of it and wait until it is written: that is their part, in
   training/stopping_policy.py and training/loop.py. Workers that score rows in batch have nothing to save: they end their batch.
5. If the launching process asked for the stop, `train` then returns on all workers as if it were done. If only a worker got
   SIGTERM, all workers raise Stopped: exit code 143, 128 + SIGTERM.
6. The launching process, if it asked, raises KeyboardInterrupt when its workers have returned (`stoppable_run`): the job says how
   to resume and exits with code 130. If it did not, the attempt has failed: the engine starts the workers again, as often as
   --launch.max-failures allows, or the job fails with the message "was ended by SIGTERM; run again to resume".

What differs by engine:

* local: torch elastic leaves SIGTERM to this module (HANDLED_SIGNALS in local_launcher.py); Ctrl-C ends its workers.
* ray: `train` runs in a thread, where Python allows no signal handlers, and Ray's own handler ends a worker's process on SIGTERM.
  Only SIGTERM to the launching process saves; a lost worker is a failure (--launch.max-failures).
* spark: a worker is a child of TorchDistributor's torchrun, whose wrapper ends it soon after a SIGTERM of its own: signal the
  launching process or the worker itself, not every process.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from recsys_ray.config import LaunchedConfig

STOP_FILE = ".stop"
CHECK_SECONDS = 1.0
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class Stopped(SystemExit):
    """The end of a worker that has saved because a worker got SIGTERM."""


class StopRequest:
    """A worker's view of a request to stop, which comes by SIGTERM to it or by the launching process.

    Args:
        run_dir: the run directory, where the launching process leaves its file.
        grace: seconds from SIGTERM to this worker until it ends, saved or not.
    """

    def __init__(self, run_dir: str, grace: float) -> None:
        self._file, self._grace = Path(run_dir, STOP_FILE), grace
        self._signalled, self._in_file, self._checked = False, False, 0.0

    def requested(self) -> bool:
        """Returns whether a stop is requested. One by the launching process is seen after a second at most."""
        if not self._in_file and time.monotonic() - self._checked > CHECK_SECONDS:
            self._in_file, self._checked = self._file.exists(), time.monotonic()
        return self._signalled or self._in_file

    def end_stopped_worker(self) -> None:
        """Raises Stopped, unless the launching process asked for the stop: then `train` has to return. Call it after saving."""
        if not self._file.exists():
            raise Stopped(SIGTERM_EXIT_CODE)

    @contextmanager
    def deferring_sigterm(self) -> Iterator[None]:
        """Makes the first SIGTERM a request while the body runs. The second, or the end of the grace period, ends the worker.

        In a thread other than the main one, as under Ray, this does nothing: Ray's own handler then ends the process.
        """
        with _signal_handlers(self._on_sigterm, end_worker):
            yield

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            end_worker(number, frame)
        self._signalled = True
        signal.setitimer(signal.ITIMER_REAL, self._grace)


def end_worker(number: int, frame: FrameType | None) -> None:
    """Ends this worker, as a signal handler."""
    raise SystemExit(SIGTERM_EXIT_CODE)


def stop_requested(run_dir: str) -> bool:
    """Returns whether the launching process has asked its workers to stop."""
    return Path(run_dir, STOP_FILE).exists()


@dataclass
class _RunUnderWay:
    """The run that this process has launched, if any, for its signal handler to find."""

    config: LaunchedConfig | None = None
    stop_requested: bool = False


_run = _RunUnderWay()


@contextmanager
def stoppable_run(config: LaunchedConfig) -> Iterator[None]:
    """Lets SIGTERM stop the run that the body launches. Raises KeyboardInterrupt once its workers have saved and returned."""
    stop = Path(config.run_dir, STOP_FILE)
    stop.unlink(missing_ok=True)
    _run.config, _run.stop_requested = config, False
    try:
        yield
    except Exception as error:
        if _run.stop_requested:
            raise KeyboardInterrupt from error
        raise
    finally:
        _run.config = None
        stop.unlink(missing_ok=True)
    if _run.stop_requested:
        raise KeyboardInterrupt


@contextmanager
def sigterm_as_stop_request() -> Iterator[None]:
    """Makes the first SIGTERM to this process ask a run that is under way to save and stop.

    Without a run, on the second SIGTERM and when the grace period is over, it is Ctrl-C. By default SIGTERM would end this
    process before it could ask its workers.
    """
    with _signal_handlers(_request_stop, _interrupt):
        yield


def _request_stop(number: int, frame: FrameType | None) -> None:
    if _run.config is None or _run.stop_requested:
        _interrupt(number, frame)
        return
    _run.stop_requested = True
    run_dir = Path(_run.config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / STOP_FILE).touch()
    signal.setitimer(signal.ITIMER_REAL, _run.config.grace_seconds)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Ray Train has a handler of its own for Ctrl-C; a job that a shell put into the background has none.
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    (on_ctrl_c if callable(on_ctrl_c) else signal.default_int_handler)(signal.SIGINT, frame)


@contextmanager
def _signal_handlers(on_sigterm: Callable[..., None], on_timer: Callable[..., None]) -> Iterator[None]:
    """Handles SIGTERM and the timer's signal while the body runs, in the main thread: in others Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, on_sigterm), signal.signal(signal.SIGALRM, on_timer)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
