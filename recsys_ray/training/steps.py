"""Training steps: plain for a single worker and on CPU; for several GPUs TorchRec's TrainPipelineSparseDist, in which copy, input
distribution and compute overlap.

A single GPU replays all but the lookups of a model in parts as one CUDA graph (graphed_step.py).
"""

from __future__ import annotations

import logging
import os
import shutil
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
from recsys_ray.models.task import Batch, Outputs, SplitRanker
from recsys_ray.training.graphed_step import GraphedStep
from recsys_ray.training.optimizers import set_learning_rates

log = logging.getLogger(__name__)
Step = Callable[[Iterator[Batch]], Outputs]
"""Trains on the next batch and returns the model's outputs. Raises StopIteration where there is no batch."""


def make_step(
    model: Any, optimizer: CombinedOptimizer, world: World, *, split: SplitRanker | None = None, graphed_rows: int = 0
) -> Step:
    """Returns the step for this worker's device.

    Args:
        split: the parts of the model, where it has such.
        graphed_rows: the rows of the batches for which a single GPU captures the step of a model in parts; 0: it does not.
    """
    if world.device.type != "cuda":
        return partial(plain_step, model, optimizer)
    if world.size > 1:
        return pipelined_step(model, optimizer, world)
    if split is not None and graphed_rows and _can_compile():
        return graphed_step(model, optimizer, split, graphed_rows)
    return partial(plain_step, model, optimizer)


def _can_compile() -> bool:
    """Returns whether there is the C compiler that PyTorch's own needs, and logs where there is none."""
    found = any(map(shutil.which, [os.environ.get("CC", ""), "gcc", "clang"]))
    if not found:
        log.warning("the training step is not compiled, and so is slower, since there is no C compiler: install gcc")
    return found


def plain_step(model: Any, optimizer: CombinedOptimizer, batches: Iterator[Batch]) -> Outputs:
    """Trains on the next batch."""
    return _train_on(next(batches), model, optimizer)


def graphed_step(model: Any, optimizer: CombinedOptimizer, split: SplitRanker, rows: int, *, backend: str = "inductor") -> Step:
    """Returns a step that trains on batches of so many rows by a GraphedStep, and on others, such as an epoch's last, plainly."""
    graphed = GraphedStep(optimizer, split, backend=backend)

    def step(batches: Iterator[Batch]) -> Outputs:
        batch = next(batches)
        return {"loss": graphed(batch)} if len(batch.weights) == rows else _train_on(batch, model, optimizer)

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
