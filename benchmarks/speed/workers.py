"""A single worker, and a model with its batches, for the benchmarks of loading and of training."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.speed.side_by_side import DATA
from recsys_ray.config import DataConfig, OptimizerConfig, ShardingConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.stream import BlockStream, batch_layout
from recsys_ray.distributed import World
from recsys_ray.host_memory import keep_freed_memory
from recsys_ray.logs import configure_logging
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext, Task
from recsys_ray.schema import Schema
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import Step, make_step

MODEL = DLRMConfig(interaction="dot", embedding_dim=16)
ON_GPU = torch.cuda.is_available()
WORLD = World(0, 1, 0, 1, torch.device("cuda", 0) if ON_GPU else torch.device("cpu"), device_indices=(0,) if ON_GPU else ())
"""The place of a single worker, on the GPU where there is one."""
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def alone() -> World:
    """Joins a process group of this process alone, as the trainer would: NCCL on a GPU."""
    configure_logging()
    os.environ |= ALONE
    if ON_GPU:
        torch.cuda.set_device(WORLD.device)
    keep_freed_memory()
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)  # port 0: one that is free
    dist.init_process_group("nccl" if ON_GPU else "gloo", store=store, rank=0, world_size=1)
    return WORLD


@dataclass(frozen=True)
class Trained:
    task: Task
    model: Any
    step: Step


def build(schema: Schema, world: World, batch: int, precision: torch.dtype | None = None) -> Trained:
    task = build_task(MODEL, BuildContext(schema, world.device, precision))
    model = shard_model(task.module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=batch)
    initialise_tables(model, 0.0, 0)
    return Trained(task, model, make_step(model, build_optimizer(model, OptimizerConfig()), world))


def resident(blocks: Path, task: Task, batch: int, number: int) -> list[Batch]:
    with tempfile.TemporaryDirectory(dir=DATA) as cache:
        return [task.to_batch(columns) for columns in islice(iter(stream(blocks, Path(cache), batch)), number)]


def stream(blocks: Path, cache: Path, batch: int, loaders: int | None = None) -> BlockStream:
    """Returns the stream of a single worker; `loaders` is its data.loader_workers."""
    dataset, config = DatasetDirectory.open(blocks), DataConfig(loader_workers=loaders)
    layout = batch_layout(batch, dataset.summary["block_rows"], 1)
    return BlockStream(str(dataset.split("train")), cache, layout, seed=0, shuffle=True, config=config, weight="")
