"""The cost model: memory and time of a step, from the shards that TorchRec's planner has placed.

Tables, their exchange, and how long both take are the planner's estimates (torchrec.distributed.planner, 1.8): times in ms, from
bytes over bandwidths. What the planner does not count is added here: the dense part, and the optimizer state of tables that are
split by columns. The constants of the dense part are fitted to steps measured on an H100 (docs/planning.md).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import cast

from torchrec.distributed.planner.types import Perf, ShardingOption, Storage

from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.workload import FLOAT_BYTES, Workload, optimizer_state_size
from recsys_ray.sharding.devices import bytes_per_ms
from recsys_ray.sharding.placement import cache_share

DENSE_COPIES = 4
"""Weights, gradients, and Adam's two averages."""
SCORE_BYTES = 13
"""Bytes of one score of an in-batch softmax: itself, its logarithm, its gradient, and whether it counts."""
BATCHES = 3
"""Batches that TrainPipelineSparseDist has on the GPU at once."""
ACTIVATION_PASSES = 4
"""The times that a step writes or reads each activation and its gradient in memory; what a compiler fuses, less often."""
LAUNCH_MS = 0.6
"""The part of a step on a GPU that does not depend on the rows: launching its kernels, and those too small to fill the GPU."""


@dataclass(frozen=True)
class WorkerMemory:
    """The bytes that a step takes on one worker."""

    tables: int = 0
    optimizer: int = 0
    """State of the tables' optimizer."""
    exchange: int = 0
    """Ids and embeddings that are exchanged between workers, as the planner counts them."""
    dense: int = 0
    activations: int = 0
    batches: int = 0
    cache: int = 0
    """The cache of tables in host memory, and what finds rows in it."""
    host: int = 0
    """Tables in host memory behind a GPU, with their optimizer state."""

    @property
    def total(self) -> int:
        """All bytes of the worker's own memory together."""
        return sum(dataclasses.astuple(self)) - self.host

    def __add__(self, other: WorkerMemory) -> WorkerMemory:
        return WorkerMemory(
            *(mine + its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of the parts of a step. Each is the slowest worker's, since all wait for one another at every exchange."""

    input_exchange: float
    """Exchange of ids; on GPUs it overlaps with the previous step."""
    lookup: float
    forward_exchange: float
    dense: float
    backward_exchange: float
    update: float
    dense_exchange: float
    """All-reduce of the dense gradients, and all-gather of an in-batch softmax's candidates."""
    launch: float
    """The part of the step that does not depend on the number of rows."""
    hides_input: bool

    @property
    def parts(self) -> dict[str, float]:
        """The parts that add up to the step, by name."""
        times = dataclasses.asdict(self)
        if times.pop("hides_input"):
            times.pop("input_exchange")
        return times

    @property
    def total(self) -> float:
        """Milliseconds of the whole step."""
        return max(sum(self.parts.values()), self.input_exchange)

    @property
    def bottleneck(self) -> str:
        """The name of the longest part."""
        return "input_exchange" if self.total > sum(self.parts.values()) else max(self.parts, key=self.parts.__getitem__)


def estimate_memory(options: list[ShardingOption], workload: Workload, cluster: Cluster) -> list[WorkerMemory]:
    """Estimates the memory of every worker, by rank."""
    workers = cluster.workers
    rows = workload.rows(workers)
    dense = DENSE_COPIES * FLOAT_BYTES * workload.task.cost.dense_parameters
    activations = _activation_bytes(workload, cluster) + SCORE_BYTES * workload.scores(workers)
    memory = [WorkerMemory(0, 0, 0, dense, activations, int(BATCHES * rows * workload.batch_bytes))] * workers
    for option in options:
        for shard in option.shards:
            memory[cast(int, shard.rank)] += _shard_memory(shard.size, cast(Storage, shard.storage), option, workload)
    return memory


def _shard_memory(size: list[int], storage: Storage, option: ShardingOption, workload: Workload) -> WorkerMemory:
    rows, dim = size
    kind, whole_dim = workload.config.optimizer.sparse, option.tensor.shape[1]
    table, state = workload.number_bytes * rows * dim, FLOAT_BYTES * optimizer_state_size(kind, rows, dim)
    # Each part of a table split by columns has a number for each row; the planner counts one number for all parts.
    counted = state * dim // whole_dim if kind == "rowwise_adagrad" else state
    if share := cache_share(option):
        # What the planner counts: an optimizer state of cached rows as well, 4 bytes a row of the table and 16 of the cache.
        cache = math.ceil(share * (table + counted) + rows * (4 + 16 * share))
        return WorkerMemory(exchange=max(0, storage.hbm - cache), cache=cache, host=table + state)
    # The planner does not count the gradient of a data-parallel table, which is as large as the table.
    gradient = table if option.sharding_type == "data_parallel" else 0
    return WorkerMemory(table, state, storage.hbm + storage.ddr - table - counted + gradient)


def estimate_step_time(options: list[ShardingOption], workload: Workload, cluster: Cluster) -> StepTime:
    """Estimates the time of a step and of its parts."""
    by_worker = [Perf(0, 0, 0, 0)] * cluster.workers
    for option in options:
        for shard in option.shards:
            by_worker[cast(int, shard.rank)] += cast(Perf, shard.perf)
    alone, on_gpu = cluster.workers == 1, cluster.gpu != "cpu"

    def slowest(part: str) -> float:
        return max(getattr(perf, part) for perf in by_worker)

    return StepTime(
        input_exchange=0.0 if alone else slowest("input_dist_comms"),
        lookup=slowest("fwd_compute"),
        forward_exchange=0.0 if alone else slowest("fwd_comms"),
        dense=_dense_compute(workload, cluster),
        backward_exchange=0.0 if alone else slowest("bwd_comms"),
        update=slowest("bwd_compute"),
        dense_exchange=_dense_exchange(workload, cluster),
        launch=LAUNCH_MS if on_gpu else 0.0,
        hides_input=on_gpu,
    )


def _dense_compute(workload: Workload, cluster: Cluster) -> float:
    """Returns the ms of the matrix products, and of moving activations to memory and back."""
    products = workload.flops(cluster.workers) / (cluster.device.tflops * cluster.utilisation * 1e9)
    return products + ACTIVATION_PASSES * _activation_bytes(workload, cluster) / bytes_per_ms(cluster.device.memory_gb_s)


def _activation_bytes(workload: Workload, cluster: Cluster) -> int:
    half = cluster.gpu != "cpu" and workload.config.train.precision != "fp32"
    return FLOAT_BYTES // (2 if half else 1) * workload.rows(cluster.workers) * workload.task.cost.activations_per_row


def _dense_exchange(workload: Workload, cluster: Cluster) -> float:
    """Returns the ms of a ring all-reduce, in which every number passes each worker twice; nodes use all GPUs' links at once."""
    speed = cluster.device.network_gb_s * cluster.gpus_per_node if cluster.nodes > 1 else cluster.device.link_gb_s
    gathered = workload.gathered_candidates * workload.config.model.embedding_dim
    others = (cluster.workers - 1) / cluster.workers
    return (
        2
        * others
        * FLOAT_BYTES
        * (workload.task.cost.dense_parameters / bytes_per_ms(speed) + gathered / bytes_per_ms(cluster.slowest_link_gb_s))
    )
