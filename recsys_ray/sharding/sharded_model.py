"""A model whose tables are sharded over the workers by TorchRec's DistributedModelParallel, and the tables' first values."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from recsys_ray.compat.torchrec_compat import ShardedEmbeddingBagCollection, holds_whole_tables, lookup_without_exchange
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.host_memory import zeros_on_huge_pages
from recsys_ray.sharding.local_tables import local_tables
from recsys_ray.sharding.number_types import exchange_codecs, set_table_type
from recsys_ray.sharding.planner import available_memory, fuse_sparse_optimizer, make_plan
from recsys_ray.sharding.search import sharders
from recsys_ray.sharding.table_values import fill_uniform


def shard_model(
    module: nn.Module,
    world: World,
    *,
    sharding: ShardingConfig,
    optimizer: OptimizerConfig | None,
    local_batch: int,
    lookup_type: torch.dtype | None = None,
) -> DistributedModelParallel:
    """Shards `module` over all workers; its tables are not initialised yet. Raises ValueError where they do not fit.

    Args:
        optimizer: updates the tables; None for a model that only predicts, whose tables then have no optimizer state.
        lookup_type: the type in which the lookups of a single GPU return embeddings; None: the tables' own, as everywhere else.
    """
    sharding = set_table_type(module, sharding, world.device)
    if optimizer is not None:
        fuse_sparse_optimizer(module, optimizer)
    memory = available_memory(world, sharding, trains=optimizer is not None)
    alone = world.size == 1
    plan = make_plan(module, world, sharding=sharding, memory=memory, local_batch=local_batch)
    model = DistributedModelParallel(
        module,
        device=world.device,
        plan=plan,
        sharders=sharders(
            sharding.types,
            world.size,
            lookup_type=lookup_type if alone and world.device.type == "cuda" else None,
            codecs=exchange_codecs(sharding, world.device),
        ),
        init_data_parallel=not alone,  # DDP around a single worker only costs time
    )
    for part in model.modules() if alone else ():
        if isinstance(part, ShardedEmbeddingBagCollection) and holds_whole_tables(part):
            part.forward = lookup_without_exchange(part)
    return model


def initialise_tables(model: nn.Module, init_range: float, seed: int) -> None:
    """Draws the tables uniformly in ± init_range, or if that is 0 in ± 1/sqrt(n) for a table of n rows (Naumov et al. 2019).

    A value depends on seed, table, row and column alone: it is the same whatever the number of workers, the plan and the device.
    """
    for name, parts in local_tables(model).items():
        for part in parts:
            if part.tensor.device.type == "cpu":
                zeros_on_huge_pages(part.tensor.data_ptr(), part.tensor.nbytes)
            limit = init_range or part.table_rows**-0.5
            fill_uniform(part.tensor, part.offsets, stream=f"{seed} {name}", limit=limit)
