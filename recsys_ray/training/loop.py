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
    losses: list[torch.Tensor] = field(default_factory=list)
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    points: list[dict[str, float]] = field(default_factory=list)


Report = Callable[[dict[str, float]], None]


class LossNotFinite(RuntimeError):
    """`step`: the first whose loss is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


def train_epoch(
    step: Step,
    batches: Iterable[Batch],
    optimizer: CombinedOptimizer,
    meter: Meter,
    world: World,
    loop: LoopConfig,
    rates: OptimizerConfig,
    report: Report,
    wants_checkpoint: Callable[[], bool],
    checkpoint: Callable[[], None],
) -> dict[str, float]:
    """Trains until `batches` end or max_steps is reached; seconds spent in "data" and "step" come back.

    `wants_checkpoint` is asked after each step; before a checkpoint, the losses so far are looked at. Raises LossNotFinite.
    """
    waiting = Waiting(islice(batches, loop.max_steps - meter.step) if loop.max_steps else batches)
    began, meter.started, meter.waited = time.perf_counter(), time.perf_counter(), 0.0
    while True:
        set_learning_rates(optimizer, meter.step, rates)
        # Dropout by the step alone: a run that goes on draws what it would have drawn.
        torch.manual_seed(zlib.crc32(f"{loop.seed} {meter.step} {world.rank}".encode()))
        try:
            loss = step(waiting)[0]
        except StopIteration:
            break
        meter.step += 1
        meter.losses.append(loss)
        save = wants_checkpoint()
        if save or meter.step % loop.log_every == 0:
            _report(meter, waiting, world, loop, rates, report)
        if save:
            saving = time.perf_counter()
            checkpoint()
            paused = time.perf_counter() - saving
            began, meter.started = began + paused, meter.started + paused
    if meter.losses:
        _report(meter, waiting, world, loop, rates, report)
    total = time.perf_counter() - began
    return {"data": waiting.seconds, "step": total - waiting.seconds}


def _report(meter: Meter, waiting: Waiting, world: World, loop: LoopConfig, rates: OptimizerConfig, report: Report) -> None:
    """Every worker calls it; averaged over the steps since the last one and over workers."""
    losses = torch.stack(meter.losses).double()
    elapsed = time.perf_counter() - meter.started
    local = torch.tensor([losses.mean().float().item(), (waiting.seconds - meter.waited) / elapsed], dtype=torch.float64)
    mean = mean_over_workers(local, world.device)
    if not mean[0].isfinite():
        finite = mean_over_workers(losses, world.device).isfinite()
        raise LossNotFinite(meter.step - len(losses) + 1 + int((~finite).int().argmax()))
    point = {
        "step": meter.step,
        "loss": float(mean[0]),
        "rows_per_second": len(losses) * loop.global_batch / elapsed,
        "data_wait_share": float(mean[1]),
        "learning_rate": rates.dense_learning_rate * rate_factor(meter.step - 1, rates),
    }
    meter.points.append(point)
    report(point)
    meter.losses, meter.waited, meter.started = [], waiting.seconds, time.perf_counter()
