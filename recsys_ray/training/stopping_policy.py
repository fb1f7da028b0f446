"""When to write a checkpoint within an epoch, and when to stop: what one worker wishes, all do at the same step."""

from __future__ import annotations

import time
from enum import IntEnum

import torch
import torch.distributed as dist

from recsys_ray.config import CheckpointConfig
from recsys_ray.launch.stopping import StopRequest


class Wish(IntEnum):
    """The greatest of all workers' wishes holds."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Schedule:
    """Every worker asks it after each step. Make it after the process group; `finish` before that goes."""

    def __init__(self, config: CheckpointConfig, stop: StopRequest) -> None:
        self._config, self._stop = config, stop
        self._saved = time.monotonic()
        # On the CPU and in the background: no step waits for it, and no GPU is stopped for it.
        self._group = dist.new_group(backend="gloo")
        self._flag = torch.zeros((), dtype=torch.int32)
        self._sent: dist.Work | None = None

    def due(self, step: int) -> Wish:
        """After `step`: wishes take a step to reach all workers, steps that are counted do not."""
        wish = self.finish()
        own = self._own_wish()
        # The checkpoint that is due now is not to be wished for again.
        self._flag.fill_(Wish.NOTHING if own is Wish.SAVE and wish is not Wish.NOTHING else own)
        self._sent = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        counted = self._config.every_steps and step % self._config.every_steps == 0
        return max(wish, Wish.SAVE) if counted else wish

    def saved(self) -> None:
        self._saved = time.monotonic()

    def finish(self) -> Wish:
        """What all wished at the last step."""
        if self._sent is None:
            return Wish.NOTHING
        self._sent.wait()
        self._sent = None
        return Wish(int(self._flag))

    def _own_wish(self) -> Wish:
        if self._stop.wanted():
            return Wish.STOP
        # One clock alone: the others would wish for the same checkpoint a moment later.
        by_the_clock = bool(self._config.every_minutes) and dist.get_rank() == 0
        overdue = by_the_clock and time.monotonic() - self._saved > 60 * self._config.every_minutes
        return Wish.SAVE if overdue else Wish.NOTHING
