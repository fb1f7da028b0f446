"""Timing of a worker's start-up and of an epoch's steps, with the losses since the last report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from recsys_ray.distributed import mean_over_workers
from recsys_ray.models.task import Batch

log = logging.getLogger(__name__)


class StartupTimes:
    """The seconds from a worker's start to its first step, by part and in order."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, part: str) -> None:
        """Ends a part of the start-up."""
        now = time.perf_counter()
        self.parts[part] = now - self._last
        self._last = now

    def first_step(self) -> None:
        """Ends the start-up and logs it on rank 0; later calls do nothing, so it may be called after every step."""
        if "first step" not in self.parts:
            self.done("first step")
            if dist.get_rank() == 0:
                parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.parts.items())
                log.info("first step %.2f s after the worker began: %s", sum(self.parts.values()), parts)


class LossNotFinite(RuntimeError):
    """A loss that is NaN or infinite. `steps_ago` is the number of steps that have followed the first such step."""

    def __init__(self, steps_ago: int) -> None:
        super().__init__(f"a loss is not finite, {steps_ago} steps ago")
        self.steps_ago = steps_ago


class TimedBatches:
    """An iterator over batches that adds up the seconds spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - started


class EpochMeter:
    """The loss and the throughput of an epoch. Every worker makes the same calls."""

    def __init__(self, batches: TimedBatches, global_batch: int, device: torch.device) -> None:
        self._batches, self._global_batch, self._device = batches, global_batch, device
        self.losses: list[torch.Tensor] = []
        """Losses of the steps since the last point, still on the device."""
        self._began = self._point_began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the enclosed block from throughput."""
        began = time.perf_counter()
        yield
        pause = time.perf_counter() - began
        self._began, self._point_began = self._began + pause, self._point_began + pause

    def point(self, step: int) -> dict[str, float]:
        """Returns loss, rows per second and data wait share since the last point, averaged over steps and workers.

        Raises LossNotFinite.
        """
        losses = torch.stack(self.losses).double()
        elapsed = time.perf_counter() - self._point_began
        waited = self._batches.seconds - self._waited
        local = torch.tensor([losses.mean().float().item(), waited / elapsed], dtype=torch.float64)
        loss, waiting = mean_over_workers(local, self._device).tolist()
        if not math.isfinite(loss):
            finite = mean_over_workers(losses, self._device).isfinite()
            raise LossNotFinite(len(losses) - 1 - int((~finite).int().argmax()))
        self.losses, self._waited, self._point_began = [], self._batches.seconds, time.perf_counter()
        rows_per_second = len(losses) * self._global_batch / elapsed
        return {"step": step, "loss": loss, "rows_per_second": rows_per_second, "data_wait_share": waiting}

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of the epoch so far: "data", the time spent waiting for batches, and "step", the rest."""
        total = time.perf_counter() - self._began
        return {"data": self._batches.seconds, "step": total - self._batches.seconds}
