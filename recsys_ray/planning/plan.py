"""Plans a workload on a described cluster with TorchRec's planner, and finds the smallest cluster that fits it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import cast

from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption

from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.cost_model import StepTime, WorkerMemory, estimate_memory, estimate_step_time
from recsys_ray.planning.workload import FLOAT_BYTES, Workload
from recsys_ray.sharding.devices import GIB, bandwidths
from recsys_ray.sharding.placement import TableShard
from recsys_ray.sharding.planner import RESERVED_SHARE, sharders, topology


@dataclass(frozen=True)
class ClusterPlan:
    """The plan of a workload on a cluster: where every shard goes, the memory of every worker, and the time of a step."""

    cluster: Cluster
    workload: Workload
    shards: list[TableShard]
    memory: list[WorkerMemory]
    step: StepTime

    @property
    def rows_per_second(self) -> float:
        """Rows trained by all workers in a second."""
        return self.workload.config.train.global_batch / self.step.total * 1000

    @property
    def cost_of_a_billion_rows(self) -> float:
        """The price of training on a billion rows, in the currency of the cluster's price."""
        return 1e9 / self.rows_per_second / 3600 * self.cluster.price * self.cluster.workers


def usable_bytes(workload: Workload, cluster: Cluster) -> int:
    """Returns the bytes that a worker may use: what --sharding.memory-gib says, or all of its memory."""
    return int((workload.config.sharding.memory_gib or cluster.device.memory_gib) * GIB)


def plan_cluster(workload: Workload, cluster: Cluster) -> ClusterPlan | None:
    """Plans the workload on this cluster. Returns None where it does not fit."""
    limit = usable_bytes(workload, cluster)
    options = _best_options(workload, cluster, limit)
    if options is None:
        return None
    memory = estimate_memory(options, workload, cluster.workers)
    if max(part.total for part in memory) > limit:
        return None
    return ClusterPlan(cluster, workload, _shards(options), memory, estimate_step_time(options, workload, cluster))


def smallest_plan(workload: Workload, cluster: Cluster) -> ClusterPlan | None:
    """Plans on the fewest such GPUs that the workload fits. Returns None where `most_nodes` nodes are too few."""
    limit = usable_bytes(workload, cluster)
    sizes = [size for size in cluster.sizes() if size * limit >= workload.table_bytes]
    plans: dict[int, ClusterPlan | None] = {}

    def fits(place: int) -> bool:
        plans[place] = plan_cluster(workload, cluster.resized(sizes[place]))
        return plans[place] is not None

    # Planning takes longer with more workers: double the stride until one fits, then bisect between the last two.
    below, place = -1, 0
    while place < len(sizes) and not fits(place):
        below, place = place, 2 * place + 1
    found = bisect_left(range(len(sizes)), True, lo=below + 1, hi=min(place, len(sizes)), key=fits)
    return plans.get(found)


def _best_options(workload: Workload, cluster: Cluster, limit: int) -> list[ShardingOption] | None:
    """Returns the planner's choice for every table; None where it finds no room."""
    kind = "cpu" if cluster.gpu == "cpu" else "cuda"
    chosen: list[ShardingOption] = []

    def keep(options: list[ShardingOption]) -> list[ShardingOption]:
        chosen.extend(options)
        return options

    planner = EmbeddingShardingPlanner(
        topology=topology(cluster.workers, cluster.gpus_per_node, kind=kind, memory=limit, speeds=bandwidths(cluster.device)),
        batch_size=workload.rows(cluster.workers),
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        constraints=workload.constraints,
        stats=[],
        debug=False,
        callbacks=[keep],
    )
    try:
        planner.plan(workload.task.module, sharders(workload.config.sharding.types, cluster.workers))
    except PlannerError:
        return None
    return chosen


def _shards(options: list[ShardingOption]) -> list[TableShard]:
    return [
        TableShard(
            table=option.name,
            rows=shard.size[0],
            dim=shard.size[1],
            mib=FLOAT_BYTES * shard.size[0] * shard.size[1] / (1 << 20),
            sharding=option.sharding_type,
            kernel=option.compute_kernel,
            rank=cast(int, shard.rank),
        )
        for option in options
        for shard in option.shards
    ]
