"""Data-parallel embedding tables: the same training as with sharded ones, under any plan, and checkpoints across plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import ShardingConfig
from recsys_ray.distributed import World, join_world
from recsys_ray.sharding.local_tables import local_tables
from recsys_ray.sharding.placement import placement_text, table_shards
from tests.support.small_training import Training
from tests.support.workers import run_workers

STEPS = 50
WHOLE, SHARDED, BOTH = ("data_parallel",), ("row_wise",), ("data_parallel", "table_wise", "row_wise")
COLUMNS = ("column_wise",)
PLANS = {"whole": WHOLE, "table-wise": ("table_wise",), "row-wise": SHARDED, "mixed": BOTH}
CROSSINGS = [(WHOLE, SHARDED), (SHARDED, WHOLE), (BOTH, WHOLE), (WHOLE, COLUMNS), (COLUMNS, WHOLE)]


def training_of(world: World, types: tuple[str, ...], kind: str = "rowwise_adagrad", pooling: str = "mean") -> Training:
    return Training(world, ShardingConfig(types=types), kind, pooling)  # type: ignore[arg-type]


def single_worker(curves: str) -> None:
    with join_world(1) as world:
        found = {kind: training_of(world, BOTH, kind).run(0, STEPS) for kind in ("rowwise_adagrad", "adagrad", "sgd")}
        found["attention"] = training_of(world, BOTH, pooling="attention").run(0, STEPS)
        torch.save(found, curves)


def all_plans_train_alike(curves: str) -> None:
    expected = torch.load(curves, weights_only=True)
    with join_world(1) as world:
        for kind in ("rowwise_adagrad", "adagrad", "sgd"):
            for plan, types in PLANS.items():
                training = training_of(world, types, kind)
                kinds = training.kinds()
                assert ("data_parallel" in kinds and len(kinds) > 1) if plan == "mixed" else kinds == set(types), kinds
                losses = training.run(0, STEPS)
                assert losses == pytest.approx(expected[kind], abs=1e-5), (kind, plan)
                assert kind == "sgd" or sum(losses[-10:]) < sum(losses[:10]) - 1  # plain SGD learns slowly
        for types in (WHOLE, BOTH):
            assert training_of(world, types, pooling="attention").run(0, STEPS) == pytest.approx(expected["attention"], abs=1e-5)


def test_one_and_two_workers_have_the_same_losses_under_any_plan(tmp_path: Path) -> None:
    run_workers(single_worker, 1, str(tmp_path / "curves"))
    run_workers(all_plans_train_alike, 2, str(tmp_path / "curves"))


def replicas_stay_equal() -> None:
    with join_world(1) as world:
        training = training_of(world, WHOLE)
        plain = training.run(0, 10)
        pipelined = training_of(world, WHOLE)
        assert pipelined.run(0, 10, pipelined=True) == plain
        for (part,) in local_tables(training.model).values():
            found = [torch.empty_like(part.tensor) for _ in range(2)]
            dist.all_gather(found, part.tensor.contiguous())
            assert torch.equal(*found)
        assert "each: 50 x 8" in placement_text(table_shards(training.model))


def test_every_worker_has_the_same_table_and_the_pipeline_of_gpus_trains_them_too() -> None:
    run_workers(replicas_stay_equal, 2)


def checkpoints_cross_plans(folder: str) -> None:
    store = CheckpointStore(folder)
    with join_world(1) as world:
        for number, (saved, resumed) in enumerate(CROSSINGS, 1):
            training = training_of(world, saved)
            training.run(0, 5)
            training.save(store, number)
            other = training_of(world, resumed)
            other.restore(store, number)
            # Row-wise Adagrad of a table split by columns has two numbers where a whole row has one: only the next loss is equal.
            steps = 1 if COLUMNS in (saved, resumed) else 5
            assert other.run(5, steps) == pytest.approx(training.run(5, steps), abs=1e-6), (saved, resumed)


def test_checkpoint_is_resumed_under_another_plan(tmp_path: Path) -> None:
    run_workers(checkpoints_cross_plans, 2, str(tmp_path))
