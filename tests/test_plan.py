"""Planning without a cluster: memory, the smallest cluster that fits, cost, and the shards of a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed.gpu.dataset import clicks_schema
from recsys_ray.config import LoopConfig, OptimizerConfig, ShardingConfig, TrainConfig
from recsys_ray.datasets.teacher import Teacher
from recsys_ray.distributed import join_world
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.planning.cluster import Cluster, check_cluster
from recsys_ray.planning.plan import ClusterPlan, plan_cluster, smallest_plan
from recsys_ray.planning.plan_text import too_small
from recsys_ray.planning.workload import make_workload
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.devices import GIB
from recsys_ray.sharding.local_tables import local_tables
from recsys_ray.sharding.placement import table_shards
from recsys_ray.sharding.search import RESERVED_SHARE
from recsys_ray.sharding.sharded_model import shard_model
from recsys_ray.training.optimizers import build_optimizer
from tests.support.processes import ROOT
from tests.support.workers import run_workers

ROWS, DIM, TABLES, BATCH = 10_000_000, 64, 16, 8192
CONFIG = TrainConfig(model=DLRMConfig(embedding_dim=DIM), train=LoopConfig(global_batch=BATCH))


def schema(rows: int = ROWS, tables: int = TABLES) -> Schema:
    return Schema((Label("label"), Dense("age"), *[Categorical(f"c{n}", num_embeddings=rows) for n in range(tables)]))


def planned(config: TrainConfig, columns: Schema, cluster: Cluster, list_values: float = 1.0) -> ClusterPlan:
    found = plan_cluster(make_workload(config, columns, list_values), cluster)
    assert found is not None
    return found


def test_the_command_prints_plan_memory_time_and_cost_of_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "clicks.json").write_text(schema().to_json())
    flags = ["--model.embedding-dim", "64", "--cluster.nodes", "2", "--cluster.price", "3"]
    command = [sys.executable, "jobs/plan.py", "dlrm", "--schema", str(tmp_path / "clicks.json"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("2 nodes of 8 x h100", "c15_table", "their optimizer state", "bottleneck: ", "between nodes", "rows/s"):
        assert words in done.stdout, done.stdout
    # 16 tables x 10 million x 65 numbers x 4 bytes are 38.7 GiB, in 85 % of 79 GiB.
    assert "smallest that fits: 1 node of 1 x h100" in done.stdout and "An estimate" in done.stdout


@pytest.mark.unit
def test_tables_too_large_name_the_smallest_cluster_and_the_remedy() -> None:
    work, cluster = make_workload(CONFIG, schema(), 1.0), Cluster(gpus_per_node=1, gpu="a10g")
    assert plan_cluster(work, cluster) is None
    told = too_small(work, cluster, smallest_plan(work, cluster))
    for words in ("the embedding tables (38.74 GiB", "1 x a10g of 22 GiB", "3 nodes of 1 x a10g", "lower num_embeddings"):
        assert words in told, told
    assert "nor in up to 32 nodes of 1" in too_small(work, cluster, None)


@pytest.mark.unit
@pytest.mark.parametrize(("memory_gib", "per_node", "workers"), [(79.0, 8, 1), (24.0, 8, 2), (12.5, 8, 4), (5.0, 4, 12)])
def test_the_smallest_cluster_is_as_large_as_its_tables(memory_gib: float, per_node: int, workers: int) -> None:
    work = make_workload(CONFIG, schema(), 1.0)
    assert work.table_bytes == TABLES * ROWS * (DIM + 1) * 4
    least = smallest_plan(work, Cluster(gpus_per_node=per_node, memory_gib=memory_gib))
    assert least is not None and least.cluster.workers == workers
    room, fewer = (1 - RESERVED_SHARE) * memory_gib * GIB, workers // 2 if workers <= per_node else workers - per_node
    assert fewer * room < work.table_bytes <= workers * room


@pytest.mark.unit
def test_tables_that_may_not_be_split_fit_nowhere() -> None:
    config = replace(CONFIG, sharding=ShardingConfig(types=("table_wise",)))
    assert smallest_plan(make_workload(config, schema(), 1.0), Cluster(memory_gib=2.0, most_nodes=4)) is None


@pytest.mark.unit
def test_predicted_tables_are_rows_by_dim_and_cost_is_arithmetic() -> None:
    found = planned(CONFIG, schema(), Cluster(nodes=2, price=3.0))
    assert sum(memory.tables for memory in found.memory) == TABLES * ROWS * DIM * 4
    assert sum(memory.optimizer for memory in found.memory) == TABLES * ROWS * 4
    assert found.rows_per_second == pytest.approx(BATCH / (found.step.total / 1000))
    assert found.cost_of_a_billion_rows == pytest.approx(1e9 * found.step.total / 1000 / BATCH / 3600 * 16 * 3.0)
    assert found.step.total == pytest.approx(sum(found.step.parts.values()))


@pytest.mark.unit
def test_slow_links_and_long_lists_are_the_bottleneck_that_they_are() -> None:
    columns = Schema((*schema(1000, 4).columns, Categorical("history", num_embeddings=1000, multi=True)))
    slow = planned(CONFIG, columns, Cluster(nodes=2, network_gb_s=0.01))
    assert slow.step.bottleneck in ("forward_exchange", "backward_exchange")
    few, many = (planned(CONFIG, columns, Cluster(gpus_per_node=1), values) for values in (1.0, 1000.0))
    assert many.step.lookup > 50 * few.step.lookup and many.step.bottleneck == "update"
    assert few.step.forward_exchange == 0
    assert planned(CONFIG, columns, Cluster(gpus_per_node=1, tflops=1e-3)).step.bottleneck == "dense"


@pytest.mark.unit
def test_over_slow_links_only_tables_too_large_for_a_gpu_are_split() -> None:
    """With several kernels to choose from, TorchRec's search splits all six tables, at twice the exchange."""
    rows = dict(zip("abcdef", (40_000_000, 40_000_000, 3_000_000, 3_000_000, 10_000, 10_000), strict=True))
    columns = Schema((Label("label"), *[Categorical(name, num_embeddings=count) for name, count in rows.items()]))
    config = replace(CONFIG, model=DLRMConfig(embedding_dim=128))
    found = planned(config, columns, Cluster(nodes=2, gpus_per_node=4, gpu="a10g"))
    assert {part.table for part in found.shards if part.sharding == "row_wise"} == {"a_table", "b_table"}


@pytest.mark.unit
def test_a_softmax_over_the_global_batch_takes_memory() -> None:
    keys = (Categorical("user", "user", num_embeddings=1000, key=True, encoding="identity"),)
    columns = Schema((*keys, Categorical("item", "item", num_embeddings=1000, key=True, encoding="identity")))
    found = planned(replace(CONFIG, model=TwoTowerConfig()), columns, Cluster(gpus_per_node=2))
    assert found.memory[0].activations > BATCH // 2 * BATCH * 12


@pytest.mark.unit
def test_what_cannot_be_planned_is_named() -> None:
    with pytest.raises(ValueError, match=r"column 'city': num_embeddings is 0.*--data\.path"):
        make_workload(CONFIG, Schema((Label("label"), Categorical("city", encoding="vocabulary"))), 1.0)
    with pytest.raises(ValueError, match=r"--cluster\.gpus-per-node is 0"):
        check_cluster(Cluster(gpus_per_node=0))


def test_a_real_run_has_the_predicted_bytes_of_tables_and_optimizer(tmp_path: Path) -> None:
    """Each column-wise part of a table has its own row-wise Adagrad state, which TorchRec's planner counts once."""
    columns, runs = schema(2000, 3), []
    kinds = [(kind, "rowwise_adagrad") for kind in ("row_wise", "column_wise", "data_parallel")]
    for kind, sparse in (("table_wise", "adagrad"), *kinds):
        sharding = ShardingConfig(types=(kind,), memory_gib=1.0)  # type: ignore[arg-type]
        optimizer = OptimizerConfig(sparse=sparse)  # type: ignore[arg-type]
        runs.append(replace(CONFIG, model=DLRMConfig(embedding_dim=256), sharding=sharding, optimizer=optimizer))
    run_workers(_measure, 2, tmp_path, columns, runs)
    measured = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for number, config in enumerate(runs):
        found = planned(config, columns, Cluster(gpus_per_node=2, gpu="cpu"))
        predicted = [[memory.tables, memory.optimizer] for memory in found.memory]
        assert predicted == [own[number][:2] for own in measured]
        assert sorted(_place(part) for part in found.shards) == measured[0][number][2]
    assert sum(own[2][1] for own in measured) == 2 * 3 * 2000 * 4
    assert [own[3][0] for own in measured] == [3 * 2000 * 256 * 4] * 2


def _measure(folder: Path, columns: Schema, runs: list[TrainConfig]) -> None:
    """Saves, for each run, the bytes of this worker's shards and of their optimizer state, and the placement of all shards."""
    with join_world(1) as world:
        found = []
        for config in runs:
            task = build_task(config.model, BuildContext(columns, world.device))
            model = shard_model(
                task.module, world, sharding=config.sharding, optimizer=config.optimizer, local_batch=BATCH // world.size
            )
            optimizer = dict(build_optimizer(model, config.optimizer).state_dict()["state"])
            states = [value for name, values in optimizer.items() if name.startswith("sparse.") for value in values.values()]
            tables = [part.tensor for parts in local_tables(model).values() for part in parts]
            places = sorted(_place(part) for part in table_shards(model))
            found.append([_local_bytes(tables), _local_bytes(states), places])
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


def _place(part: Any) -> list[Any]:
    return [part.table, part.rows, part.dim, part.rank]


def _local_bytes(values: Any) -> int:
    held = [[part.tensor for part in value.local_shards()] if hasattr(value, "local_shards") else [value] for value in values]
    return sum(tensor.nbytes for tensors in held for tensor in tensors)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("interaction", "batch", "milliseconds", "gib"),
    [("dot", 16_384, 2.2, 4.6), ("dcn", 16_384, 5.24, 4.6), ("dot", 65_536, 7.2, 6.8), ("dcn", 65_536, 18.2, 8.7)],
)
def test_plan_of_one_h100_is_near_what_was_measured(interaction: str, batch: int, milliseconds: float, gib: float) -> None:
    """The measured figures are those of docs/gpu.md."""
    model = DLRMConfig(
        interaction=interaction,  # type: ignore[arg-type]
        embedding_dim=128,
        dense_layers=(512, 256),
        over_layers=(1024, 1024, 512, 256),
        cross_layers=3,
        cross_rank=512,
    )
    columns = clicks_schema(Teacher(num_embeddings=3_000_000))
    found = planned(TrainConfig(model=model, train=LoopConfig(global_batch=batch)), columns, Cluster(gpus_per_node=1, gpu="h100"))
    assert found.step.total == pytest.approx(milliseconds, rel=0.2)
    assert found.memory[0].total / GIB == pytest.approx(gib, rel=0.2)
