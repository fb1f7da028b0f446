"""Plans a workload on a described cluster with TorchRec's planner, and finds the smallest cluster that fits it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import cast

import torch
from torchrec.distributed.planner.types import PlannerError, ShardingOption

from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.cost_model import StepTime, WorkerMemory, estimate_memory, estimate_step_time
from recsys_ray.planning.workload import Workload
from recsys_ray.sharding.devices import GIB, bandwidths
from recsys_ray.sharding.number_types import exchange_codecs
from recsys_ray.sharding.placement import TableShard, cache_share
from recsys_ray.sharding.planner import host_memory_behind
from recsys_ray.sharding.search import FoundPlan, Search, TableMemory


@dataclass(frozen=True)
class ClusterPlan:
    """The plan of a workload on a cluster: where every shard goes, the memory of every worker, and the time of a step."""

    cluster: Cluster
    workload: Workload
    shards: list[TableShard]
    memory: list[WorkerMemory]
    step: StepTime
    all_on_gpu: StepTime | None = None
    """The step of such GPUs if their memory held all tables, for a plan with tables in host memory; None for any other."""

    @property
    def rows_per_second(self) -> float:
        """Rows trained by all workers in a second."""
        return self.workload.config.train.global_batch / self.step.total * 1000

    @property
    def cost_of_a_billion_rows(self) -> float:
        """The price of training on a billion rows, in the currency of the cluster's price."""
        return 1e9 / self.rows_per_second / 3600 * self.cluster.price * self.cluster.workers


def usable_memory(workload: Workload, cluster: Cluster) -> TableMemory:
    """Returns what a worker may use: what --sharding.memory-gib and .host-memory-gib say, or all that training would use."""
    sharding, device = workload.config.sharding, cluster.device
    own = int((sharding.memory_gib or device.memory_gib) * GIB)
    if cluster.gpu == "cpu" or not sharding.cache_share:
        return TableMemory(own)
    behind = host_memory_behind(own, int(device.host_memory_gib * GIB), trains=True)
    return TableMemory(own, int(sharding.host_memory_gib * GIB) or behind)


def plan_cluster(workload: Workload, cluster: Cluster, *, host: bool = True) -> ClusterPlan | None:
    """Plans the workload on this cluster. Returns None where it does not fit.

    Args:
        host: whether tables may be in host memory where GPUs have too little.
    """
    own, behind = usable_memory(workload, cluster)
    search = _search(workload, cluster)
    try:
        found = search.find(TableMemory(own, behind if host else 0))
    except PlannerError:
        return None
    memory = estimate_memory(found.options, workload, cluster)
    if max(part.total for part in memory) > own:
        return None
    all_on_gpu = _step(search.in_unlimited_memory(), workload, cluster) if found.uses_host else None
    return ClusterPlan(cluster, workload, _shards(found.options), memory, _step(found, workload, cluster), all_on_gpu)


def _step(found: FoundPlan, workload: Workload, cluster: Cluster) -> StepTime:
    return estimate_step_time(found.options, workload, cluster)


def smallest_plan(workload: Workload, cluster: Cluster) -> ClusterPlan | None:
    """Plans on the fewest such GPUs whose own memory holds all tables. Returns None where `most_nodes` nodes are too few."""
    limit = usable_memory(workload, cluster).own
    sizes = [size for size in cluster.sizes() if size * limit >= workload.table_bytes]
    plans: dict[int, ClusterPlan | None] = {}

    def fits(place: int) -> bool:
        plans[place] = plan_cluster(workload, cluster.resized(sizes[place]), host=False)
        return plans[place] is not None

    # Planning takes longer with more workers: double the stride until one fits, then bisect between the last two.
    below, place = -1, 0
    while place < len(sizes) and not fits(place):
        below, place = place, 2 * place + 1
    found = bisect_left(range(len(sizes)), True, lo=below + 1, hi=min(place, len(sizes)), key=fits)
    return plans.get(found)


def _search(workload: Workload, cluster: Cluster) -> Search:
    return Search(
        module=workload.task.module,
        types=workload.config.sharding.types,
        workers=cluster.workers,
        workers_per_node=cluster.gpus_per_node,
        kind="cpu" if cluster.gpu == "cpu" else "cuda",
        speeds=bandwidths(cluster.device),
        local_batch=workload.rows(cluster.workers),
        cache_share=workload.config.sharding.cache_share,
        constraints=workload.constraints,
        codecs=exchange_codecs(workload.config.sharding, torch.device("cpu" if cluster.gpu == "cpu" else "cuda")),
    )


def _shards(options: list[ShardingOption]) -> list[TableShard]:
    return [
        TableShard(
            table=option.name,
            rows=shard.size[0],
            dim=shard.size[1],
            mib=option.tensor.element_size() * shard.size[0] * shard.size[1] / (1 << 20),
            sharding=option.sharding_type,
            kernel=option.compute_kernel,
            rank=cast(int, shard.rank),
            cache=cache_share(option),
        )
        for option in options
        for shard in option.shards
    ]
