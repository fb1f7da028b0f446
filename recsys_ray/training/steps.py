"""Training steps: on a GPU by TorchRec's TrainPipelineSparseDist (copy, input distribution and compute overlap), on CPU plain."""

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
from recsys_ray.models.task import Batch, Outputs
from recsys_ray.training.optimizers import set_learning_rates

Step = Callable[[Iterator[Batch]], Outputs]
"""Trains on the next batch and returns the model's outputs. Raises StopIteration where there is no batch."""


def make_step(model: Any, optimizer: CombinedOptimizer, world: World) -> Step:
    """Returns the step for this worker's device."""
    if world.device.type == "cuda":
        return pipelined_step(model, optimizer, world)

    def plain(batches: Iterator[Batch]) -> Outputs:
        batch = next(batches)
        optimizer.zero_grad()
        loss, outputs = model(batch)
        loss.backward()
        optimizer.step()
        return outputs

    return plain


def pipelined_step(model: Any, optimizer: CombinedOptimizer, world: World) -> Step:
    """Returns a step of TorchRec's pipeline, which works on several batches at once."""
    pipeline = TrainPipelineSparseDist(model, optimizer, world.device, execute_all_batches=True)

    def step(batches: Iterator[Batch]) -> Outputs:
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
    *,
    loop: LoopConfig,
    rates: OptimizerConfig,
    done: int,
    rank: int,
) -> Iterator[torch.Tensor]:
    """Trains on each batch and yields its loss, still on the device.

    `done` steps precede these; training ends with the batches, or at train.max_steps.
    """
    number, batches = done, islice(batches, loop.max_steps - done if loop.max_steps else None)
    while True:
        set_learning_rates(optimizer, number, rates)
        # Dropout depends on the step alone, so that a resumed run draws what it would have drawn.
        torch.manual_seed(zlib.crc32(f"{loop.seed} {number} {rank}".encode()))
        try:
            loss = step(batches)["loss"]
        except StopIteration:
            return
        number += 1
        yield loss
