"""Steps: on a GPU TorchRec's TrainPipelineSparseDist (copy, input distribution and compute overlap), on CPU the plain path."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray.config import LoopConfig, OptimizerConfig
from recsys_ray.models.task import Batch
from recsys_ray.training.optimizers import rate_factor, set_learning_rates
from recsys_ray.training.world import World, mean_over_workers

Step = Callable[[Iterator[Batch]], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Trains on the next batch and returns its (loss, logits, labels). Raises StopIteration when there is none."""


def make_step(model: Any, optimizer: CombinedOptimizer, world: World) -> Step:
    if world.device.type == "cuda":
        return pipelined_step(model, optimizer, world)

    def plain(batches: Iterator[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = next(batches)
        optimizer.zero_grad()
        loss, output = model(batch)
        loss.backward()
        optimizer.step()
        return output

    return plain


def pipelined_step(model: Any, optimizer: CombinedOptimizer, world: World) -> Step:
    pipeline = TrainPipelineSparseDist(model, optimizer, world.device, execute_all_batches=True)

    def step(batches: Iterator[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        try:
            return pipeline.progress(batches)
        except StopIteration:
            # Evaluation calls the model itself, whose forward the pipeline has replaced; the next epoch attaches it again.
            pipeline.detach()
            pipeline.reset()
            raise

    return step


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


@dataclass
class Meter:
    """Where training stands, and what to report of the steps since the last report."""

    step: int = 0
    rows: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    points: list[dict[str, float]] = field(default_factory=list)


Report = Callable[[dict[str, float]], None]


def train_epoch(
    step: Step,
    batches: Iterable[Batch],
    optimizer: CombinedOptimizer,
    meter: Meter,
    world: World,
    loop: LoopConfig,
    rates: OptimizerConfig,
    report: Report,
    checkpoint: Callable[[], None],
) -> dict[str, float]:
    """Trains until `batches` end or max_steps is reached; seconds spent in "data" and "step" come back."""
    waiting = Waiting(islice(batches, loop.max_steps - meter.step) if loop.max_steps else batches)
    began, meter.started, meter.waited = time.perf_counter(), time.perf_counter(), 0.0
    while True:
        set_learning_rates(optimizer, meter.step, rates)
        # Dropout by the step alone: a run that goes on draws what it would have drawn.
        torch.manual_seed(zlib.crc32(f"{loop.seed} {meter.step} {world.rank}".encode()))
        try:
            loss, _, labels = step(waiting)
        except StopIteration:
            break
        meter.step += 1
        meter.rows += labels.numel()
        meter.losses.append(loss)
        save = bool(loop.checkpoint_every) and meter.step % loop.checkpoint_every == 0
        if save or meter.step % loop.log_every == 0:
            _report(meter, waiting, world, rates, report)
        if save:
            saving = time.perf_counter()
            checkpoint()
            paused = time.perf_counter() - saving
            began, meter.started = began + paused, meter.started + paused
    if meter.losses:
        _report(meter, waiting, world, rates, report)
    total = time.perf_counter() - began
    return {"data": waiting.seconds, "step": total - waiting.seconds}


def _report(meter: Meter, waiting: Waiting, world: World, rates: OptimizerConfig, report: Report) -> None:
    """Every worker calls it; averaged over the steps since the last one and over workers."""
    loss = torch.stack(meter.losses).double().mean().float()
    elapsed = time.perf_counter() - meter.started
    local = torch.tensor([loss.item(), meter.rows / elapsed, (waiting.seconds - meter.waited) / elapsed], dtype=torch.float64)
    mean = mean_over_workers(local, world.device)
    point = {
        "step": meter.step,
        "loss": float(mean[0]),
        "rows_per_second": float(mean[1]) * world.size,
        "data_wait_share": float(mean[2]),
        "learning_rate": rates.dense_learning_rate * rate_factor(meter.step - 1, rates),
    }
    meter.points.append(point)
    report(point)
    meter.losses, meter.rows, meter.waited, meter.started = [], 0, waiting.seconds, time.perf_counter()
