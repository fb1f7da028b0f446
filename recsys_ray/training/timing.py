"""The loss on the way, and where the time goes: of an epoch, and of all workers' steps between two reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from recsys_ray.distributed import mean_over_workers
from recsys_ray.models.task import Batch


class LossNotFinite(RuntimeError):
    """`steps_ago`: how many steps have followed the first whose loss is not finite."""

    def __init__(self, steps_ago: int) -> None:
        super().__init__(f"a loss is not finite, {steps_ago} steps ago")
        self.steps_ago = steps_ago


class Waiting:
    """Batches, with the seconds spent waiting for them."""

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


class Meter:
    """Of one epoch. Every worker makes the same calls. `losses`: of the steps since the last point."""

    def __init__(self, batches: Waiting, global_batch: int, device: torch.device) -> None:
        self._batches, self._global_batch, self._device = batches, global_batch, device
        self.losses: list[torch.Tensor] = []
        self._began = self._point_began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        began = time.perf_counter()
        yield
        pause = time.perf_counter() - began
        self._began, self._point_began = self._began + pause, self._point_began + pause

    def point(self, step: int) -> dict[str, float]:
        """What the steps since the last point came to, averaged over them and over workers. Raises LossNotFinite."""
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
        """Of the epoch so far: "data", the time without a batch, and "step", the rest."""
        total = time.perf_counter() - self._began
        return {"data": self._batches.seconds, "step": total - self._batches.seconds}
