"""Workload + cluster -> TorchRec's sharding plan, without a process group, and without the cluster; the smallest that it fits."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import cast

from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption

from recsys_ray.planning.cluster import GIB, Cluster, bandwidths
from recsys_ray.planning.cost_model import Memory, StepTime, memory_of, step_time
from recsys_ray.planning.workload import FLOAT, Workload
from recsys_ray.sharding.planner import RESERVED, Shard, sharders, topology


@dataclass(frozen=True)
class ClusterPlan:
    """Of a workload on a cluster: where every shard goes, `memory` by worker, and time."""

    cluster: Cluster
    workload: Workload
    shards: list[Shard]
    memory: list[Memory]
    step: StepTime

    @property
    def rows_per_second(self) -> float:
        return self.workload.config.train.global_batch / self.step.total * 1000

    @property
    def cost_of_a_billion_rows(self) -> float:
        return 1e9 / self.rows_per_second / 3600 * self.cluster.price * self.cluster.workers


def usable_bytes(workload: Workload, cluster: Cluster) -> int:
    """Of a worker's memory: what --sharding.memory-gib says, or all."""
    return int((workload.config.sharding.memory_gib or cluster.device.memory_gib) * GIB)


def plan(workload: Workload, cluster: Cluster) -> ClusterPlan | None:
    """None where it does not fit."""
    limit = usable_bytes(workload, cluster)
    options = _best_options(workload, cluster, limit)
    if options is None:
        return None
    memory = memory_of(options, workload, cluster.workers)
    if max(part.total for part in memory) > limit:
        return None
    return ClusterPlan(cluster, workload, _shards(options), memory, step_time(options, workload, cluster))


def smallest(workload: Workload, cluster: Cluster) -> ClusterPlan | None:
    """On the fewest of such GPUs that it fits, or None if it fits on none of `most_nodes` nodes either."""
    limit = usable_bytes(workload, cluster)
    sizes = [size for size in cluster.sizes() if size * limit >= workload.table_bytes]
    plans: dict[int, ClusterPlan | None] = {}

    def fits(place: int) -> bool:
        plans[place] = plan(workload, cluster.of_size(sizes[place]))
        return plans[place] is not None

    # Planning takes longer the more workers: from below in ever larger strides, then between the last two.
    below, place = -1, 0
    while place < len(sizes) and not fits(place):
        below, place = place, 2 * place + 1
    found = bisect_left(range(len(sizes)), True, lo=below + 1, hi=min(place, len(sizes)), key=fits)
    return plans.get(found)


def _best_options(workload: Workload, cluster: Cluster, limit: int) -> list[ShardingOption] | None:
    """The planner's choice for every table; None where it finds no room."""
    kind = "cpu" if cluster.gpu == "cpu" else "cuda"
    chosen: list[ShardingOption] = []

    def keep(options: list[ShardingOption]) -> list[ShardingOption]:
        chosen.extend(options)
        return options

    planner = EmbeddingShardingPlanner(
        topology=topology(cluster.workers, cluster.gpus_per_node, kind, limit, bandwidths(cluster.device)),
        batch_size=workload.rows(cluster.workers),
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        constraints=workload.constraints,
        stats=[],
        debug=False,
        callbacks=[keep],
    )
    try:
        planner.plan(workload.module, sharders(workload.config.sharding.types, cluster.workers))
    except PlannerError:
        return None
    return chosen


def _shards(options: list[ShardingOption]) -> list[Shard]:
    return [
        Shard(
            table=option.name,
            rows=shard.size[0],
            dim=shard.size[1],
            mib=FLOAT * shard.size[0] * shard.size[1] / (1 << 20),
            sharding=option.sharding_type,
            kernel=option.compute_kernel,
            rank=cast(int, shard.rank),
        )
        for option in options
        for shard in option.shards
    ]
