"""Types of numbers: tables stored in half the bytes, and embeddings exchanged in half the bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import LoopConfig, ShardingConfig, TrainConfig
from recsys_ray.distributed import join_world
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.plan import ClusterPlan, plan_cluster
from recsys_ray.planning.workload import make_workload
from recsys_ray.serving.bundle import load_ranker
from recsys_ray.sharding.local_tables import local_tables
from recsys_ray.sharding.placement import table_shards
from recsys_ray.training.train import train
from tests.support.runs import dlrm_config
from tests.support.small_training import SCHEMA, Training
from tests.support.workers import run_workers

SHARDED = ShardingConfig(types=("table_wise", "row_wise"))
STEPS = 20


def exchanged_types_train_alike() -> None:
    with join_world(1) as world:
        exact = Training(world, SHARDED).run(0, STEPS)
        for kind in ("fp16", "bf16"):
            for sharding in (SHARDED, replace(SHARDED, types=("row_wise",))):
                losses = Training(world, replace(sharding, exchange_type=kind)).run(0, STEPS)  # type: ignore[arg-type]
                assert losses != exact and losses == pytest.approx(exact, abs=5e-3), kind


def test_embeddings_are_exchanged_in_half_the_bytes() -> None:
    run_workers(exchanged_types_train_alike, 2)


def half_tables_train_and_resume(folder: str) -> None:
    half, store = replace(SHARDED, table_type="fp16"), CheckpointStore(folder)
    with join_world(1) as world:
        exact = Training(world, SHARDED)
        first = Training(world, half)
        assert first.run(0, STEPS) == pytest.approx(exact.run(0, STEPS), abs=5e-3)
        tables = [part.tensor for parts in local_tables(first.model).values() for part in parts]
        assert tables and {table.dtype for table in tables} == {torch.float16}
        mib = {shard.table: shard.mib for shard in table_shards(exact.model)}
        assert {shard.table: 2 * shard.mib for shard in table_shards(first.model)} == mib
        for step, (saved, resumed) in enumerate([(half, half), (half, SHARDED), (SHARDED, half)], 1):
            training, other = Training(world, saved), Training(world, resumed)
            training.run(0, 5)
            training.save(store, step)
            other.restore(store, step)
            assert other.run(5, 5) == pytest.approx(training.run(5, 5), abs=0 if saved == resumed else 5e-3)


def test_tables_of_fp16_train_and_resume_also_from_fp32(tmp_path: Path) -> None:
    run_workers(half_tables_train_and_resume, 2, str(tmp_path))


def refused_on_cpu() -> None:
    with join_world(1) as world, pytest.raises(ValueError, match=r"--sharding\.table-type bf16: .* take fp16, or train on GPUs"):
        Training(world, ShardingConfig(table_type="bf16"))


def test_bf16_tables_are_refused_on_a_cpu() -> None:
    run_workers(refused_on_cpu, 1)


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_planner_counts_the_bytes_of_the_type(kind: str) -> None:
    def planned(sharding: ShardingConfig) -> ClusterPlan:
        config = TrainConfig(model=DLRMConfig(embedding_dim=64), train=LoopConfig(global_batch=512), sharding=sharding)
        found = plan_cluster(make_workload(config, SCHEMA, 2.0), Cluster(gpus_per_node=2, gpu="a10g"))
        assert found is not None
        return found

    whole = planned(SHARDED)
    half = planned(ShardingConfig(table_type=kind))  # type: ignore[arg-type]
    assert sum(memory.tables for memory in whole.memory) == 2 * sum(memory.tables for memory in half.memory)
    assert sum(memory.optimizer for memory in whole.memory) == sum(memory.optimizer for memory in half.memory)
    assert sum(shard.mib for shard in whole.shards) == 2 * sum(shard.mib for shard in half.shards)
    assert {shard.sharding for shard in half.shards} <= {"table_wise", "row_wise"}
    assert whole.workload.table_bytes > half.workload.table_bytes
    exchanged = planned(replace(SHARDED, exchange_type=kind))  # type: ignore[arg-type]
    assert exchanged.step.forward_exchange == pytest.approx(whole.step.forward_exchange / 2, rel=0.05)


def test_whole_run_with_half_tables_ends_in_a_bundle_that_predicts(dataset: Path, tmp_path: Path) -> None:
    """The bundle holds the numbers as they were trained, and takes part in everything that reads bundles."""
    sharding = ShardingConfig(types=("row_wise",), table_type="fp16", exchange_type="fp16")
    config = replace(dlrm_config(dataset, tmp_path / "run", max_steps=20), sharding=sharding)
    run_workers(train, 2, config)
    tensors = open_bundle(tmp_path / "run").manifest.tensors
    assert {one.dtype for name, one in tensors.items() if "embedding_bags" in name} == {"float16"}
    ranker = load_ranker(tmp_path / "run")
    missing = pa.table({column.name: pa.nulls(2) for column in ranker.schema.features})
    scores = ranker.predict_encoded(ranker.encoder.encode(missing, ranker.schema.features))
    assert len(scores) == 2 and all(0 < score < 1 for score in scores)
    warm = replace(dlrm_config(dataset, tmp_path / "warm", max_steps=1), init_from=str(tmp_path / "run"))
    run_workers(train, 2, warm)
    assert (tmp_path / "warm" / "outcome.json").exists()
