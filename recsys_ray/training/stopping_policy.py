"""When a run saves a checkpoint within an epoch, and when it stops: all ranks take the same action after the same step.

SIGTERM and the clock reach one rank alone. Each rank therefore requests an action after every step, and the ranks MAX-reduce the
requests (continue < save < stop) in the background, while the next step runs.
"""

from __future__ import annotations

import time
from enum import IntEnum

import torch
import torch.distributed as dist

from recsys_ray.config import CheckpointConfig
from recsys_ray.launch.stopping import StopRequest


class CheckpointAction(IntEnum):
    """An action that all ranks take after a step; the highest action that any rank requests is taken."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class StoppingPolicy:
    """Decides after each step whether all ranks save, stop or continue.

    Every rank makes the same calls. Create it after the process group, and call `finish` before the process group ends.
    """

    def __init__(self, config: CheckpointConfig, stop: StopRequest) -> None:
        self._config, self._stop = config, stop
        self._saved = time.monotonic()
        # On the CPU and in the background: no step waits for the collective, and it does not synchronise the GPU.
        self._group = dist.new_group(backend="gloo")
        self._flag = torch.zeros((), dtype=torch.int32)
        self._pending: dist.Work | None = None

    def action_after(self, step: int) -> CheckpointAction:
        """Returns the action of all ranks after `step`: what was requested one step earlier, or a save that is due by count."""
        action = self.finish()
        own = self._own_request()
        # A save that is being taken now must not be requested once more.
        repeated = own is CheckpointAction.SAVE and action is not CheckpointAction.CONTINUE
        self._flag.fill_(CheckpointAction.CONTINUE if repeated else own)
        if dist.get_world_size() > 1:
            self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        counted = self._config.every_steps and step % self._config.every_steps == 0
        return max(action, CheckpointAction.SAVE) if counted else action

    def saved(self) -> None:
        """Restarts the clock by which checkpoints are due."""
        self._saved = time.monotonic()

    def finish(self) -> CheckpointAction:
        """Waits for the reduction under way, if any, and returns the action that it decided."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        action = CheckpointAction(int(self._flag))
        self._flag.zero_()
        return action

    def _own_request(self) -> CheckpointAction:
        if self._stop.requested():
            return CheckpointAction.STOP
        # Only one rank looks at the clock: the others would request the same checkpoint a moment later.
        by_the_clock = bool(self._config.every_minutes) and dist.get_rank() == 0
        overdue = by_the_clock and time.monotonic() - self._saved > 60 * self._config.every_minutes
        return CheckpointAction.SAVE if overdue else CheckpointAction.CONTINUE
