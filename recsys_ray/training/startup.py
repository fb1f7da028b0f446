"""Where the seconds go between a worker's start and its first step: said once it is taken, and the same after every resume."""

from __future__ import annotations

import logging
import time

import torch.distributed as dist

log = logging.getLogger(__name__)


class Startup:
    """`parts`: name -> seconds, in order."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = now - self._last
        self._last = now

    def first_step(self) -> None:
        """Called after every step; what it says, it says once."""
        if "first step" not in self.parts:
            self.done("first step")
            if dist.get_rank() == 0:
                log.info("%s", self._words())

    def _words(self) -> str:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.parts.items())
        return f"first step {sum(self.parts.values()):.2f} s after the worker began: {parts}"
