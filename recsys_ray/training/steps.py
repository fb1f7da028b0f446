"""Training steps: plain for a single worker and on CPU; for several GPUs TorchRec's TrainPipelineSparseDist, in which copy, input
distribution and compute overlap.

On a single GPU everything but the lookups is compiled, since at small batches the host's launches take longer than the kernels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
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


def make_step(model: Any, optimizer: CombinedOptimizer, world: World, *, compiled_rows: int = 0) -> Step:
    """Returns the step for this worker's device.

    Args:
        compiled_rows: compiles the model for batches of so many rows, where it runs on a single GPU; 0: it is not compiled.
    """
    if world.device.type == "cuda" and world.size > 1:
        return pipelined_step(model, optimizer, world)
    if world.device.type == "cuda" and compiled_rows:
        return compiled_step(model, optimizer, compiled_rows)
    return partial(plain_step, model, optimizer)


def plain_step(model: Any, optimizer: CombinedOptimizer, batches: Iterator[Batch]) -> Outputs:
    """Trains on the next batch."""
    return _train_on(next(batches), model, optimizer)


def compiled_step(model: Any, optimizer: CombinedOptimizer, rows: int, backend: str = "inductor") -> Step:
    """Compiles the model in place and returns a step that uses it; its first call takes the half minute that compiling takes."""
    model.module.compile(dynamic=False, backend=backend)

    def step(batches: Iterator[Batch]) -> Outputs:
        batch = next(batches)
        # An epoch's last batch may be short: for one step it is not worth compiling.
        with torch.compiler.set_stance("default" if len(batch.weights) == rows else "force_eager"):
            return _train_on(batch, model, optimizer)

    return step


def _train_on(batch: Batch, model: Any, optimizer: CombinedOptimizer) -> Outputs:
    optimizer.zero_grad()
    loss, outputs = model(batch)
    loss.backward()
    optimizer.step()
    return outputs


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
