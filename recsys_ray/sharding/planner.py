"""TorchRec's planner, set up alike for the plan that trains and the plan that is only printed, and the memory that it may use."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys_ray.compat.torch_compat import apply_optimizer_in_backward, set_placement_device
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.sharding.devices import DEVICES, GIB, bandwidths

RESERVED_SHARE = 0.15
"""The share of each worker's memory that the planner leaves free."""
FUSED = ["fused"]
"""The compute kernels on offer: tables in the worker's own memory, updated in the backward pass. On GPUs the planner would also
offer kernels that keep tables in host memory (UVM); with so many more choices it plans worse where all tables would fit."""
CONTROL_GROUP = Path("/sys/fs/cgroup")


class _Choices:
    """A mixin of TorchRec's sharders that offers FUSED and the configured types; on CPU TorchRec would hide row_wise."""

    def __init__(self, types: tuple[str, ...]) -> None:
        super().__init__()
        self._types = types

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(self._types)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return FUSED


class BagSharder(_Choices, EmbeddingBagCollectionSharder):
    """A sharder of embeddings that TorchRec pools."""


class SequenceSharder(_Choices, EmbeddingCollectionSharder):
    """A sharder of embeddings that the model pools itself."""


def sharders(types: tuple[str, ...], workers: int) -> list[ModuleSharder]:
    """Returns the sharders that offer these types.

    The tables of a single worker stay whole: split tables would be cut up and reassembled in every step for nothing.
    """
    offered = ("table_wise",) if workers == 1 and "table_wise" in types else types
    return [BagSharder(offered), SequenceSharder(offered)]


def fuse_sparse_optimizer(module: nn.Module, config: OptimizerConfig) -> None:
    """Makes the embedding tables of `module` update within the backward pass, by the configured optimizer."""
    classes = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    settings = {"lr": config.sparse_learning_rate, "weight_decay": config.sparse_weight_decay}
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection | EmbeddingCollection):
            apply_optimizer_in_backward(classes[config.sparse], part.parameters(), settings)


def available_memory(world: World, config: ShardingConfig, *, trains: bool) -> int:
    """Returns the bytes that every worker has for tables: the minimum over all workers of what is free on GPU or host."""
    if config.memory_gib:
        return int(config.memory_gib * GIB)
    on_gpu = world.device.type == "cuda"
    # Half of a host's memory in training: checkpoints are written from a copy.
    copies = 2 if trains else 1
    free = torch.cuda.mem_get_info(world.device)[0] if on_gpu else free_host_memory() // world.on_host // copies
    least = torch.tensor(free, device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def free_host_memory() -> int:
    """Returns the free bytes of the host, or of this process's control group (container) where that has fewer."""
    free = psutil.virtual_memory().available
    limit, used = CONTROL_GROUP / "memory.max", CONTROL_GROUP / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def make_plan(module: nn.Module, world: World, *, types: tuple[str, ...], memory: int, local_batch: int) -> ShardingPlan:
    """Plans on rank 0 for all workers, each with `memory` bytes.

    Raises ValueError with the sizes and a remedy where no plan fits.
    """
    kind = world.device.type
    # TorchRec's own bandwidths are those of GPUs, on which an exchange costs next to nothing: it would cut every table by rows,
    # which takes a third longer through gloo.
    speeds = {} if kind == "cuda" else bandwidths(DEVICES["cpu"])
    planner = EmbeddingShardingPlanner(
        topology=topology(world.size, world.local_size, kind=kind, memory=memory, speeds=speeds),
        batch_size=local_batch,
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        debug=False,
    )
    try:
        plan = planner.collective_plan(module, sharders(types, world.size), dist.GroupMember.WORLD)
        return on_their_devices(plan, world.device_indices)
    except PlannerError as error:
        tables = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters() if parameter.is_meta)
        raise ValueError(
            f"the embedding tables ({tables / GIB:.2f} GiB, and their optimizer state and activations besides) do not fit in "
            f"{world.size} workers of {memory / GIB:.2f} GiB ({RESERVED_SHARE:.0%} of it reserved): add workers, lower "
            f"num_embeddings in the schema or --model.embedding-dim{', or allow more --sharding.types' if world.size > 1 else ''}"
        ) from error


def topology(workers: int, workers_per_node: int, *, kind: str, memory: int, speeds: dict[str, float]) -> Topology:
    """Describes the workers to the planner: `kind` of device is cuda or cpu, `memory` the bytes of each, on GPU or host."""
    hbm, ddr = (memory, 0) if kind == "cuda" else (0, memory)
    return Topology(
        world_size=workers, local_world_size=workers_per_node, compute_device=kind, hbm_cap=hbm, ddr_cap=ddr, **speeds
    )


def on_their_devices(plan: ShardingPlan, indices: tuple[int, ...]) -> ShardingPlan:
    """Corrects the GPU of every shard, in place: `indices` has each rank's own; empty on CPU.

    The planner assumes GPU number (rank modulo workers of a node), which is wrong where nodes have unequally many workers, or
    where each worker sees one GPU alone.
    """
    shards = [part for tables in plan.plan.values() for table in tables.values() for part in table.sharding_spec.shards]
    for part in shards if indices else ():
        set_placement_device(part.placement, torch.device("cuda", indices[part.placement.rank()]))
    return plan
