"""A model whose tables are sharded over the workers by TorchRec's DistributedModelParallel, and the tables' first values."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from recsys_ray.compat.torchrec_compat import ShardedEmbeddingBagCollection, holds_whole_tables, lookup_without_exchange
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.host_memory import zeros_on_huge_pages
from recsys_ray.sharding.planner import available_memory, fuse_sparse_optimizer, make_plan, sharders

ROWS_DRAWN_AT_ONCE = 1 << 16


def shard_model(
    module: nn.Module, world: World, *, sharding: ShardingConfig, optimizer: OptimizerConfig | None, local_batch: int
) -> DistributedModelParallel:
    """Shards `module` over all workers; its tables are not initialised yet. Raises ValueError where they do not fit.

    Args:
        optimizer: updates the tables; None for a model that only predicts, whose tables then have no optimizer state.
    """
    if optimizer is not None:
        fuse_sparse_optimizer(module, optimizer)
    memory = available_memory(world, sharding, trains=optimizer is not None)
    plan = make_plan(module, world, types=sharding.types, memory=memory, local_batch=local_batch)
    model = DistributedModelParallel(
        module,
        device=world.device,
        plan=plan,
        sharders=sharders(sharding.types, world.size),
        init_data_parallel=world.size > 1,  # DDP around a single worker only costs time
    )
    if world.size == 1:
        for part in model.modules():
            if isinstance(part, ShardedEmbeddingBagCollection) and holds_whole_tables(part):
                part.forward = lookup_without_exchange(part)
    return model


def initialise_tables(model: nn.Module, init_range: float, seed: int) -> None:
    """Draws the tables uniformly in ± init_range, or if that is 0 in ± 1/sqrt(n) for a table of n rows (Naumov et al. 2019).

    The draw depends on seed, table and row alone: the values are the same whatever the number of workers and the plan.
    """
    for name, tensor in model.state_dict().items():
        if hasattr(tensor, "local_shards"):
            for local in tensor.local_shards():
                _draw(local, tensor.size(), f"{seed} {name}", init_range)


def _draw(local: Any, size: torch.Size, stream: str, init_range: float) -> None:
    """Fills one local shard of a table of this size; `stream` names the table's sequence of random numbers."""
    rows, dim = size
    if local.tensor.device.type == "cpu":
        zeros_on_huge_pages(local.tensor.data_ptr(), local.tensor.nbytes)
    (first, left), (count, width) = local.metadata.shard_offsets, local.metadata.shard_sizes
    for chunk in range(first // ROWS_DRAWN_AT_ONCE, -(-(first + count) // ROWS_DRAWN_AT_ONCE)):
        start, stop = chunk * ROWS_DRAWN_AT_ONCE, min((chunk + 1) * ROWS_DRAWN_AT_ONCE, rows)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{stream} {chunk}".encode()))
        drawn = torch.rand(stop - start, dim, generator=generator).mul_(2).sub_(1).mul_(init_range or rows**-0.5)
        low, high = max(start, first), min(stop, first + count)
        local.tensor[low - first : high - first].copy_(drawn[low - start : high - start, left : left + width])
