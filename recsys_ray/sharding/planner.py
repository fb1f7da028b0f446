"""The sharding plan that a run trains with, and the memory that it may use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys_ray.compat.torch_compat import apply_optimizer_in_backward, set_placement_device
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World, broadcast_value
from recsys_ray.sharding.devices import DEVICES, GIB, bandwidths
from recsys_ray.sharding.number_types import exchange_codecs
from recsys_ray.sharding.search import RESERVED_SHARE, Search, TableMemory

# Not print: Ray Train shows printed lines of its workers twice.
log = logging.getLogger(__name__)

CONTROL_GROUP = Path("/sys/fs/cgroup")


class ControlGroupFiles(NamedTuple):
    """The files that tell the memory of a control group, below CONTROL_GROUP, and a line of the last one."""

    limit: str
    used: str
    statistics: str
    inactive: str
    """The inactive part of the page cache."""


CONTROL_GROUP_FILES = (
    ControlGroupFiles("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ControlGroupFiles(
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"
    ),
)
"""Those of control groups version 2 and version 1."""


def fuse_sparse_optimizer(module: nn.Module, config: OptimizerConfig) -> None:
    """Makes the embedding tables of `module` update within the backward pass, by the configured optimizer."""
    classes = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    settings = {"lr": config.sparse_learning_rate, "weight_decay": config.sparse_weight_decay}
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection | EmbeddingCollection):
            apply_optimizer_in_backward(classes[config.sparse], part.parameters(), settings)


def available_memory(world: World, config: ShardingConfig, *, trains: bool) -> TableMemory:
    """Returns the bytes that every worker has for tables: the minimum over all workers of what is free on GPU and host."""
    share = free_host_memory() // world.on_host
    if world.device.type != "cuda":
        # Half of a host's memory in training: checkpoints are written from a copy.
        return TableMemory(_least(config.memory_gib, share // 2 if trains else share, world))
    own = _least(config.memory_gib, torch.cuda.mem_get_info(world.device)[0], world)
    if not config.cache_share:
        return TableMemory(own)
    return TableMemory(own, _least(config.host_memory_gib, host_memory_behind(own, share, trains=trains), world))


def host_memory_behind(gpu: int, share: int, *, trains: bool) -> int:
    """Returns the bytes for tables of a worker's share of the host's memory; `gpu` are those of its GPU."""
    # In training, checkpoints are written from a copy in host memory of what is on the GPU and of what is on the host.
    return max(0, int((1 - RESERVED_SHARE) * ((share - gpu) // 2 if trains else share)))


def _least(gib: float, free: int, world: World) -> int:
    """Returns the bytes of `gib`, or if that is 0 the minimum of `free` over all workers."""
    if gib:
        return int(gib * GIB)
    least = torch.tensor(free, device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def free_host_memory() -> int:
    """Returns the free bytes of the host, or of this process's control group (container) where that has fewer.

    The group's page cache counts as used, but what of it is inactive gives way to any other need.
    """
    free = psutil.virtual_memory().available
    for files in CONTROL_GROUP_FILES:
        limit = CONTROL_GROUP / files.limit
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            used = int((CONTROL_GROUP / files.used).read_text()) - _inactive_cache(files)
            free = min(free, int(most) - used)
    return free


def _inactive_cache(files: ControlGroupFiles) -> int:
    statistics = CONTROL_GROUP / files.statistics
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{files.inactive} ")), 0)


def make_plan(
    module: nn.Module, world: World, *, sharding: ShardingConfig, memory: TableMemory, local_batch: int
) -> ShardingPlan:
    """Plans on rank 0 for all workers. Raises ValueError on all of them, with the sizes and a remedy, where no plan fits."""
    kind = world.device.type
    search = Search(
        module=module,
        types=sharding.types,
        workers=world.size,
        workers_per_node=world.local_size,
        kind=kind,
        # TorchRec's own bandwidths are those of GPUs, on which an exchange costs next to nothing: it would cut every table by
        # rows, which takes a third longer through gloo.
        speeds={} if kind == "cuda" else bandwidths(DEVICES["cpu"]),
        local_batch=local_batch,
        cache_share=sharding.cache_share,
        codecs=exchange_codecs(sharding, world.device),
    )
    plan = broadcast_value(_plan(search, memory) if world.rank == 0 else None)
    if plan is None:
        raise ValueError(_does_not_fit(module, world, memory))
    return on_their_devices(plan, world.device_indices)


def _plan(search: Search, memory: TableMemory) -> ShardingPlan | None:
    """Returns the plan, None where there is none, and logs what tables in host memory cost."""
    try:
        found = search.find(memory)
    except PlannerError:
        return None
    if found.uses_host:
        log.warning(
            "the embedding tables do not fit in GPU memory, and some are in host memory: TorchRec's planner expects %.2f ms a "
            "step for lookups, updates and exchanges, against %.2f ms with all tables in GPU memory",
            found.milliseconds,
            search.in_unlimited_memory().milliseconds,
        )
    return found.plan


def _does_not_fit(module: nn.Module, world: World, memory: TableMemory) -> str:
    tables = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters() if parameter.is_meta)
    behind = f", nor with {memory.host / GIB:.2f} GiB of host memory behind each GPU" if memory.host else ""
    return (
        f"the embedding tables ({tables / GIB:.2f} GiB, and their optimizer state and activations besides) do not fit in "
        f"{world.size} workers of {memory.own / GIB:.2f} GiB ({RESERVED_SHARE:.0%} of it reserved){behind}: add workers, lower "
        f"num_embeddings in the schema or --model.embedding-dim{', or allow more --sharding.types' if world.size > 1 else ''}"
    )


def on_their_devices(plan: ShardingPlan, indices: tuple[int, ...]) -> ShardingPlan:
    """Corrects the GPU of every shard, in place: `indices` has each rank's own; empty on CPU.

    The planner assumes GPU number (rank modulo workers of a node), which is wrong where nodes have unequally many workers, or
    where each worker sees one GPU alone.
    """
    sharded = [table.sharding_spec for tables in plan.plan.values() for table in tables.values() if table.sharding_spec]
    for part in [part for table in sharded for part in table.shards] if indices else ():
        set_placement_device(part.placement, torch.device("cuda", indices[part.placement.rank()]))
    return plan
