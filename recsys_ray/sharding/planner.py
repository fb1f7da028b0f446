"""Task -> sharded model and its optimizers: TorchRec's planner, DistributedModelParallel, embeddings updated in the backward."""

from __future__ import annotations

import dataclasses
import zlib
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.host_memory import zeros_on_huge_pages
from recsys_ray.planning.cluster import DEVICES, GIB, bandwidths

RESERVED = 0.15
FUSED = ["fused"]
"""Kernels: tables in the worker's own memory, updated in the backward pass. On GPUs the planner would also offer ones that page
tables in from the host, which are so many choices more that it plans worse where all would fit."""
INIT_ROWS = 1 << 16
CONTROL_GROUP = Path("/sys/fs/cgroup")


class Offering:
    """What the planner may choose from: FUSED, and the types of our config (on CPU TorchRec would hide row_wise, which works)."""

    def __init__(self, types: tuple[str, ...]) -> None:
        super().__init__()
        self._types = types

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(self._types)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return FUSED


class BagSharder(Offering, EmbeddingBagCollectionSharder):
    """Of embeddings that TorchRec pools."""


class SequenceSharder(Offering, EmbeddingCollectionSharder):
    """Of embeddings that the model pools itself."""


def sharders(types: tuple[str, ...], workers: int) -> list[ModuleSharder]:
    """One worker's tables stay whole: rows or columns would be cut and put together again in every step for nothing."""
    offered = ("table_wise",) if workers == 1 and "table_wise" in types else types
    return [BagSharder(offered), SequenceSharder(offered)]


def shard(module: nn.Module, world: World, config: ShardingConfig, optimizer: OptimizerConfig, local_batch: int) -> Any:
    """A DistributedModelParallel of `module`, its tables not initialised. Raises ValueError when they do not fit."""
    fuse_sparse_optimizer(module, optimizer)
    plan = make_plan(module, config.types, world, available_memory(world, config), local_batch)
    return DistributedModelParallel(module, device=world.device, plan=plan, sharders=sharders(config.types, world.size))


def fuse_sparse_optimizer(module: nn.Module, config: OptimizerConfig) -> None:
    classes = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    settings = {"lr": config.sparse_learning_rate, "weight_decay": config.sparse_weight_decay}
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection | EmbeddingCollection):
            apply_optimizer_in_backward(classes[config.sparse], part.parameters(), settings)


def available_memory(world: World, config: ShardingConfig) -> int:
    """Bytes that every worker has: the least free GPU memory, or share of free host memory, of all workers."""
    if config.memory_gib:
        return int(config.memory_gib * GIB)
    on_gpu = world.device.type == "cuda"
    # Half of a host's: checkpoints are written from a copy.
    free = torch.cuda.mem_get_info(world.device)[0] if on_gpu else free_host_memory() // world.on_host // 2
    least = torch.tensor(free, device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def free_host_memory() -> int:
    """Bytes. A container may have less than its host: the limit of its control group, less what is in use there."""
    free = psutil.virtual_memory().available
    limit, used = CONTROL_GROUP / "memory.max", CONTROL_GROUP / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def make_plan(module: nn.Module, types: tuple[str, ...], world: World, memory: int, local_batch: int) -> ShardingPlan:
    """Plans on rank 0 for all. Raises ValueError with the sizes and a remedy when no plan fits in `memory` bytes a worker."""
    kind = world.device.type
    # TorchRec's own bandwidths are those of GPUs, to which every exchange costs next to nothing: it would cut every table by
    # rows, which through gloo takes a third longer.
    speeds = {} if kind == "cuda" else bandwidths(DEVICES["cpu"])
    planner = EmbeddingShardingPlanner(
        topology=topology(world.size, world.local_size, kind, memory, speeds),
        batch_size=local_batch,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        debug=False,
    )
    try:
        plan = planner.collective_plan(module, sharders(types, world.size), dist.GroupMember.WORLD)
        return on_their_devices(plan, world.device_indices)
    except PlannerError as error:
        tables = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters() if parameter.is_meta)
        raise ValueError(
            f"the embedding tables ({tables / GIB:.2f} GiB, and their optimizer state and activations besides) do not fit in "
            f"{world.size} workers of {memory / GIB:.2f} GiB ({RESERVED:.0%} of it reserved): add workers, lower "
            f"num_embeddings in the schema or --model.embedding-dim{', or allow more --sharding.types' if world.size > 1 else ''}"
        ) from error


def topology(workers: int, on_node: int, kind: str, memory: int, speeds: dict[str, float]) -> Topology:
    """`kind` of device: cuda or cpu; `memory`: bytes that a worker has of its GPU, or of its host."""
    hbm, ddr = (memory, 0) if kind == "cuda" else (0, memory)
    return Topology(world_size=workers, local_world_size=on_node, compute_device=kind, hbm_cap=hbm, ddr_cap=ddr, **speeds)


def on_their_devices(plan: ShardingPlan, indices: tuple[int, ...]) -> ShardingPlan:
    """The planner takes rank r's GPU for number r modulo the workers of a node: not so where nodes have unequally many workers,
    or where each worker sees one GPU alone."""
    shards = [part for tables in plan.plan.values() for table in tables.values() for part in table.sharding_spec.shards]
    for part in shards if indices else ():
        part.placement._device = torch.device("cuda", indices[part.placement.rank()])
    return plan


def initialise_tables(model: nn.Module, init_range: float, seed: int) -> None:
    """Uniform in ± init_range, or if that is 0 in ± 1/sqrt(n) for a table of n rows (Naumov et al. 2019); drawn by table and
    row: the same values whatever the number of workers and the plan."""
    for name, tensor in model.state_dict().items():
        if not hasattr(tensor, "local_shards"):
            continue
        rows, dim = tensor.size()
        for local in tensor.local_shards():
            if local.tensor.device.type == "cpu":
                zeros_on_huge_pages(local.tensor.data_ptr(), local.tensor.nbytes)
            (first, left), (count, width) = local.metadata.shard_offsets, local.metadata.shard_sizes
            for chunk in range(first // INIT_ROWS, -(-(first + count) // INIT_ROWS)):
                start, stop = chunk * INIT_ROWS, min((chunk + 1) * INIT_ROWS, rows)
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name} {chunk}".encode()))
                drawn = torch.rand(stop - start, dim, generator=generator).mul_(2).sub_(1).mul_(init_range or rows**-0.5)
                low, high = max(start, first), min(stop, first + count)
                local.tensor[low - first : high - first].copy_(drawn[low - start : high - start, left : left + width])


@dataclasses.dataclass(frozen=True)
class Shard:
    """One row of the plan: a part of a table on a worker. `rows` and `dim` are the shard's own."""

    table: str
    rows: int
    dim: int
    mib: float
    sharding: str
    kernel: str
    rank: int


def plan_shards(model: Any) -> list[Shard]:
    shards = []
    for module_plan in model.plan.plan.values():
        for table, parameter in module_plan.items():
            for part in parameter.sharding_spec.shards:
                rows, dim = part.shard_sizes
                mib = rows * dim * 4 / (1 << 20)
                shards.append(
                    Shard(table, rows, dim, mib, parameter.sharding_type, parameter.compute_kernel, part.placement.rank())
                )
    return shards


def plan_table(shards: list[Shard]) -> str:
    """For people: one line a table."""
    lines = [f"{'table':<24}{'sharding':<16}{'kernel':<8}{'rows':>14}{'dim':>6}{'MiB':>10}  shards (rank: rows x dim)"]
    for table, group in groupby(sorted(shards, key=lambda s: (s.table, s.rank)), key=lambda s: s.table):
        parts = list(group)
        rows = sum(p.rows for p in parts) if parts[0].dim == parts[-1].dim else parts[0].rows
        where = ", ".join(f"{p.rank}: {p.rows:,} x {p.dim}" for p in parts[:4]) + (", ..." if len(parts) > 4 else "")
        mib = sum(p.mib for p in parts)
        lines.append(f"{table:<24}{parts[0].sharding:<16}{parts[0].kernel:<8}{rows:>14,}{parts[0].dim:>6}{mib:>10.2f}  {where}")
    return "\n".join([*lines, f"{'all tables':<68}{sum(s.mib for s in shards):>10.2f}"])
