"""Memory and time of a step, from the shards that TorchRec's planner has placed.

Tables, their exchange, and how long both take are the planner's estimates (torchrec.distributed.planner, 1.8): times in ms, from
bytes over bandwidths. What it does not count is added: the dense part, and the optimizer state of tables split by columns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

from torchrec.distributed.planner.types import Perf, ShardingOption, Storage

from recsys_ray.planning.cluster import Cluster, bytes_a_ms
from recsys_ray.planning.workload import FLOAT, Workload, state_numbers

DENSE_COPIES = 4
"""Weights, gradients, and Adam's two averages."""
SCORE_BYTES = 13
"""Of a Two Tower's softmax, a score: itself, its logarithm, its gradient, and whether it counts."""
BATCHES = 3
"""That TrainPipelineSparseDist has on the GPU at once."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker."""

    tables: int = 0
    optimizer: int = 0
    """State of the tables' optimizer."""
    exchange: int = 0
    """Ids and embeddings on their way between workers, as the planner counts them."""
    dense: int = 0
    activations: int = 0
    batches: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(mine + its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step, each part as long as the slowest worker's: all wait for one another at every exchange."""

    input_exchange: float
    """Of ids; on GPUs it hides behind the step before."""
    lookup: float
    forward_exchange: float
    dense: float
    backward_exchange: float
    update: float
    dense_exchange: float
    """All-reduce of the dense gradients; a Two Tower's candidates too."""
    hides_input: bool

    @property
    def parts(self) -> dict[str, float]:
        """Those that add up to the step."""
        times = dataclasses.asdict(self)
        if times.pop("hides_input"):
            times.pop("input_exchange")
        return times

    @property
    def total(self) -> float:
        return max(sum(self.parts.values()), self.input_exchange)

    @property
    def bottleneck(self) -> str:
        """The name of the longest part."""
        return "input_exchange" if self.total > sum(self.parts.values()) else max(self.parts, key=self.parts.__getitem__)


def memory_of(options: list[ShardingOption], workload: Workload, workers: int) -> list[Memory]:
    """Of every worker."""
    rows = workload.rows(workers)
    dense = DENSE_COPIES * FLOAT * sum(parameter.numel() for parameter in workload.dense)
    activations = FLOAT * rows * workload.dense_numbers + SCORE_BYTES * workload.scores(workers)
    memory = [Memory(0, 0, 0, dense, activations, int(BATCHES * rows * workload.batch_bytes))] * workers
    for option in options:
        for shard in option.shards:
            memory[cast(int, shard.rank)] += _shard_memory(shard.size, cast(Storage, shard.storage), option, workload)
    return memory


def _shard_memory(size: list[int], storage: Storage, option: ShardingOption, workload: Workload) -> Memory:
    rows, dim = size
    kind, whole_dim = workload.config.optimizer.sparse, option.tensor.shape[1]
    table, state = FLOAT * rows * dim, FLOAT * state_numbers(kind, rows, dim)
    # Of a table split by columns, each part has a number a row; the planner counts one number for all of them.
    counted = state * dim // whole_dim if kind == "rowwise_adagrad" else state
    return Memory(table, state, storage.hbm + storage.ddr - table - counted)


def step_time(options: list[ShardingOption], workload: Workload, cluster: Cluster) -> StepTime:
    by_worker = [Perf(0, 0, 0, 0)] * cluster.workers
    for option in options:
        for shard in option.shards:
            by_worker[cast(int, shard.rank)] += cast(Perf, shard.perf)
    alone = cluster.workers == 1

    def slowest(part: str) -> float:
        return max(getattr(perf, part) for perf in by_worker)

    return StepTime(
        input_exchange=0.0 if alone else slowest("input_dist_comms"),
        lookup=slowest("fwd_compute"),
        forward_exchange=0.0 if alone else slowest("fwd_comms"),
        dense=workload.flops(cluster.workers) / (cluster.device.tflops * cluster.utilisation * 1e9),
        backward_exchange=0.0 if alone else slowest("bwd_comms"),
        update=slowest("bwd_compute"),
        dense_exchange=_dense_exchange(workload, cluster),
        hides_input=cluster.gpu != "cpu",
    )


def _dense_exchange(workload: Workload, cluster: Cluster) -> float:
    """A ring: every number passes each worker twice, as sum and as result; between nodes over all their GPUs' links at once."""
    numbers = sum(parameter.numel() for parameter in workload.dense)
    speed = cluster.device.network_gb_s * cluster.gpus_per_node if cluster.nodes > 1 else cluster.device.link_gb_s
    gathered = workload.candidates * workload.config.model.embedding_dim
    others = (cluster.workers - 1) / cluster.workers
    return 2 * others * FLOAT * (numbers / bytes_a_ms(speed) + gathered / bytes_a_ms(cluster.link_of_all))
