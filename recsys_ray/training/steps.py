"""Steps: on a GPU TorchRec's TrainPipelineSparseDist (copy, input distribution and compute overlap), on CPU the plain path."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray.config import LoopConfig, OptimizerConfig
from recsys_ray.distributed import World
from recsys_ray.models.task import Batch
from recsys_ray.training.optimizers import set_learning_rates

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


def train_steps(
    step: Step,
    batches: Iterator[Batch],
    optimizer: CombinedOptimizer,
    done: int,
    loop: LoopConfig,
    rates: OptimizerConfig,
    rank: int,
) -> Iterator[torch.Tensor]:
    """Trains on each batch, until max_steps at most, and yields its loss, still on the device. `done`: steps before these."""
    number, batches = done, islice(batches, loop.max_steps - done if loop.max_steps else None)
    while True:
        set_learning_rates(optimizer, number, rates)
        # Dropout by the step alone: a run that goes on draws what it would have drawn.
        torch.manual_seed(zlib.crc32(f"{loop.seed} {number} {rank}".encode()))
        try:
            loss = step(batches)[0]
        except StopIteration:
            return
        number += 1
        yield loss
