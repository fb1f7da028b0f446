"""Plans of described GPUs whose memory is too small for the tables: some tables are in host memory behind a cache."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrec.distributed.planner.types import PlannerError

from recsys_ray.config import LoopConfig, OptimizerConfig, ShardingConfig, TrainConfig
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext
from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.plan import ClusterPlan, plan_cluster, smallest_plan, usable_memory
from recsys_ray.planning.plan_text import cluster_plan_text, too_small
from recsys_ray.planning.workload import make_workload
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.devices import GIB
from recsys_ray.sharding.planner import fuse_sparse_optimizer, host_memory_behind
from recsys_ray.sharding.search import CACHED, RESERVED_SHARE, FoundPlan, Search, TableMemory
from tests.support.processes import ROOT

DIM = 64
CONFIG = TrainConfig(model=DLRMConfig(embedding_dim=DIM), train=LoopConfig(global_batch=8192))
SIZES = (40_000_000, 100, 30_000_000, 20_000_000, 1000, 50_000_000)
TABLE_BYTES = sum(SIZES) * (DIM + 1) * 4
SCHEMA = Schema((Label("label"), Dense("age"), *[Categorical(f"c{n}", num_embeddings=rows) for n, rows in enumerate(SIZES)]))


def plan(cluster: Cluster, config: TrainConfig = CONFIG) -> ClusterPlan | None:
    return plan_cluster(make_workload(config, SCHEMA, 1.0), cluster)


@pytest.mark.unit
@pytest.mark.parametrize(("gpus", "memory_gib"), [(1, 22.0), (2, 12.0), (4, 6.0)])
def test_tables_that_gpus_cannot_hold_are_in_host_memory_within_both_capacities(gpus: int, memory_gib: float) -> None:
    cluster = Cluster(gpus_per_node=gpus, gpu="a10g", memory_gib=memory_gib, host_memory_gib=256 / gpus)
    found = plan(cluster)
    assert found is not None and found.all_on_gpu is not None
    own, host = usable_memory(found.workload, cluster)
    assert max(memory.total for memory in found.memory) <= own * (1 - RESERVED_SHARE) + GIB // 8
    assert max(memory.host for memory in found.memory) <= host
    copies = [part.rows * (part.dim + 1) * 4 for part in found.shards if part.sharding == "data_parallel" and part.rank > 0]
    assert sum(memory.tables + memory.optimizer + memory.host for memory in found.memory) == TABLE_BYTES + sum(copies)
    cached = {part.table: part.cache for part in found.shards if part.kernel == CACHED}
    assert cached and set(cached.values()) == {0.2} and not cached.keys() & {"c1_table", "c4_table"}
    assert sum(memory.cache for memory in found.memory) > 0.2 * sum(memory.host for memory in found.memory)
    assert found.step.total > found.all_on_gpu.total
    # The next table would not have fitted.
    room = gpus * own * (1 - RESERVED_SHARE) - sum(memory.total for memory in found.memory)
    assert room < 0.8 * min(part.mib for part in found.shards if part.cache) * (1 << 20) * (gpus if gpus > 1 else 1)


@pytest.mark.unit
def test_tables_that_fit_are_planned_as_if_there_were_no_host_memory() -> None:
    cluster = Cluster(gpus_per_node=2, gpu="a10g", host_memory_gib=256)
    found, without = plan(cluster), plan(cluster, replace(CONFIG, sharding=ShardingConfig(cache_share=0)))
    assert found is not None and without is not None and found.shards == without.shards
    assert {part.kernel for part in found.shards} == {"fused"} and found.all_on_gpu is None
    assert "host memory" not in cluster_plan_text(found, None)


@pytest.mark.unit
def test_tables_beyond_both_are_refused_with_both_sizes() -> None:
    cluster = Cluster(gpus_per_node=1, gpu="a10g", host_memory_gib=32, most_nodes=1)
    assert plan(cluster) is None
    told = too_small(make_workload(CONFIG, SCHEMA, 1.0), cluster, None)
    for words in ("(33.90 GiB with their", "1 x a10g of 22 GiB", "nor with 4.25 GiB of host memory behind each"):
        assert words in told, told
    refused = replace(CONFIG, sharding=ShardingConfig(cache_share=0))
    assert plan(replace(cluster, host_memory_gib=1024), refused) is None


@pytest.mark.unit
def test_where_the_host_has_little_memory_the_smallest_tables_are_there() -> None:
    sizes = (60_000_000, *[3_000_000] * 10)
    columns = Schema((Label("label"), Dense("age"), *[Categorical(f"c{n}", num_embeddings=rows) for n, rows in enumerate(sizes)]))
    config = replace(CONFIG, sharding=ShardingConfig(host_memory_gib=8.0))
    found = plan_cluster(make_workload(config, columns, 1.0), Cluster(gpus_per_node=1, gpu="a10g"))
    assert found is not None and found.memory[0].host <= 8 * GIB
    assert {part.table for part in found.shards if part.kernel == "fused"} >= {"c0_table"}


@pytest.mark.unit
def test_smallest_cluster_is_one_whose_gpus_hold_all_tables() -> None:
    cluster = Cluster(gpus_per_node=4, gpu="a10g", host_memory_gib=256)
    smallest = smallest_plan(make_workload(CONFIG, SCHEMA, 1.0), cluster)
    assert smallest is not None and smallest.cluster.workers == 2 and smallest.all_on_gpu is None


@pytest.mark.unit
def test_cache_is_as_large_as_configured() -> None:
    cluster = Cluster(gpus_per_node=1, gpu="a10g", host_memory_gib=256)
    for share in (0.1, 0.4):
        found = plan(cluster, replace(CONFIG, sharding=ShardingConfig(types=("table_wise",), cache_share=share)))
        assert found is not None and {part.cache for part in found.shards} == {0.0, share}
    with pytest.raises(ValueError, match=r"--sharding\.cache-share is 1\.5: it must be at least 0 and less than 1"):
        plan(cluster, replace(CONFIG, sharding=ShardingConfig(cache_share=1.5)))


@pytest.mark.unit
def test_half_of_the_host_memory_that_copies_of_the_gpu_leave_is_for_tables() -> None:
    assert host_memory_behind(20, 120, trains=True) == int((1 - RESERVED_SHARE) * 50)
    assert host_memory_behind(20, 120, trains=False) == int((1 - RESERVED_SHARE) * 120)
    assert host_memory_behind(200, 120, trains=True) == 0


@pytest.mark.unit
def test_a_run_s_plan_has_the_cache_and_the_planner_s_price() -> None:
    """What the H100 trains with: the same search as jobs/plan.py, with TorchRec's own bandwidths."""
    task = build_task(DLRMConfig(embedding_dim=DIM), BuildContext(SCHEMA, torch.device("meta")))
    fuse_sparse_optimizer(task.module, OptimizerConfig())
    search = Search(
        module=task.module,
        types=("table_wise", "row_wise"),
        workers=1,
        workers_per_node=1,
        kind="cuda",
        speeds={},
        local_batch=8192,
        cache_share=0.25,
    )
    found: FoundPlan = search.find(TableMemory(22 * GIB, 64 * GIB))
    assert found.uses_host and found.milliseconds > search.in_unlimited_memory().milliseconds > 0
    parameters = [parameter for tables in found.plan.plan.values() for parameter in tables.values()]  # type: ignore[attr-defined]
    assert {parameter.compute_kernel for parameter in parameters} == {"fused", CACHED}
    assert all(parameter.cache_params.load_factor == 0.25 for parameter in parameters)
    with pytest.raises(PlannerError):
        search.find(TableMemory(22 * GIB))


def test_the_command_says_what_host_memory_costs(tmp_path: Path) -> None:
    (tmp_path / "clicks.json").write_text(SCHEMA.to_json())
    cluster = ["--cluster.gpu", "a10g", "--cluster.gpus-per-node", "1", "--cluster.host-memory-gib", "256"]
    command = [sys.executable, "jobs/plan.py", "dlrm", "--schema", str(tmp_path / "clicks.json"), "--model.embedding-dim", "64"]
    done = subprocess.run([*command, *cluster], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ("table c5_table: host memory behind a cache of 20% of its rows", "times as long as with all tables in GPU memory")
    for part in (*words, "cache of tables in host memory", "smallest that fits in GPU memory: 2 nodes of 1"):
        assert part in done.stdout, done.stdout
