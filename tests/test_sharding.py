"""Sharding plans, initial tables, learning rates and the pipeline, in one process with a gloo group of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.config import LoopConfig, OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World, join_world
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.evaluation.binary_metrics import predict_split
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext, Task
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding import planner as sharding
from recsys_ray.sharding.placement import placement_text, table_shards
from recsys_ray.sharding.planner import make_plan, on_their_devices
from recsys_ray.sharding.search import TableMemory
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer, rate_factor, set_learning_rates
from recsys_ray.training.steps import make_step, pipelined_step, train_steps
from tests.support.workers import run_workers

SCHEMA = Schema(
    (
        Label("label"),
        Dense("age"),
        Categorical("item", "item", num_embeddings=1000, table="items"),
        Categorical("history", "user", num_embeddings=1000, table="items", multi=True),
        Categorical("city", "user", num_embeddings=50),
    )
)
ROWS = 64


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(0, 1, 0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def task(interaction: str) -> Task:
    model = DLRMConfig(interaction=interaction, embedding_dim=8, dense_layers=(8,), over_layers=(16,), cross_rank=4)  # type: ignore[arg-type]
    return build_task(model, BuildContext(SCHEMA, torch.device("cpu"), seed=1))


def columns(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (ROWS,), generator=generator, dtype=torch.int32)
    return {
        "label": torch.randint(0, 2, (ROWS,), generator=generator).float(),
        "age": torch.randn(ROWS, generator=generator),
        "item": torch.randint(0, 1000, (ROWS,), generator=generator, dtype=torch.int32),
        "history": torch.randint(0, 1000, (int(lengths.sum()),), generator=generator, dtype=torch.int32),
        "history.lengths": lengths,
        "city": torch.randint(0, 50, (ROWS,), generator=generator, dtype=torch.int32),
        ROW_WEIGHT: torch.ones(ROWS),
    }


@pytest.mark.unit
def test_tables_that_do_not_fit_are_refused_with_sizes_and_remedy(world: World) -> None:
    with pytest.raises(ValueError, match=r"do not fit in 1 workers of 0\.00 GiB .*add workers, lower num_embeddings"):
        shard_model(
            task("dot").module, world, sharding=ShardingConfig(memory_gib=1e-5), optimizer=OptimizerConfig(), local_batch=ROWS
        )


@pytest.mark.unit
def test_plan_follows_the_gpus_that_workers_really_have(world: World) -> None:
    plan = make_plan(
        task("dot").module, world, sharding=ShardingConfig(("row_wise",)), memory=TableMemory(1 << 30), local_batch=ROWS
    )
    places = [part.placement for tables in on_their_devices(plan, (3,)).plan.values() for part in _parts(tables)]
    assert len(places) == 2 and {str(place.device()) for place in places} == {"cuda:3"}


@pytest.mark.unit
@pytest.mark.parametrize("files", sharding.CONTROL_GROUP_FILES, ids=["version 2", "version 1"])
def test_memory_of_a_container_is_its_limit(
    files: sharding.ControlGroupFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a preparation leaves in the page cache is no reason to refuse tables."""
    monkeypatch.setattr(sharding, "CONTROL_GROUP", tmp_path)
    of_host = sharding.free_host_memory()
    (tmp_path / "memory").mkdir()
    (tmp_path / files.used).write_text("900000\n")
    (tmp_path / files.statistics).write_text(f"anon 250000\n{files.inactive} 600000\nactive_file 50000\n")
    (tmp_path / files.limit).write_text("1000000\n")
    assert sharding.free_host_memory() == 700_000
    for unlimited in ("max\n", "9223372036854771712\n"):
        (tmp_path / files.limit).write_text(unlimited)
        assert sharding.free_host_memory() > of_host / 2


@pytest.mark.unit
@pytest.mark.parametrize("interaction", ["dot", "dcn"])
def test_plan_names_every_table_and_shared_tables_once(world: World, interaction: str) -> None:
    model = shard_model(task(interaction).module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=ROWS)
    shards = table_shards(model)
    assert {(part.table, part.rows, part.dim) for part in shards} == {("items_table", 1000, 8), ("city_table", 50, 8)}
    table = placement_text(shards)
    assert "items" in table and "1,000" in table and "all tables" in table


@pytest.mark.unit
def test_initial_tables_depend_on_the_seed_alone(world: World) -> None:
    def tables(types: tuple[str, ...], seed: int, init_range: float = 0.0) -> dict[str, torch.Tensor]:
        model = shard_model(
            task("dot").module, world, sharding=ShardingConfig(types=types), optimizer=OptimizerConfig(), local_batch=ROWS
        )  # type: ignore[arg-type]
        initialise_tables(model, init_range, seed)
        parts = {name: tensor for name, tensor in model.state_dict().items() if hasattr(tensor, "local_shards")}
        return {name: torch.cat([part.tensor for part in tensor.local_shards()], dim=1) for name, tensor in parts.items()}

    row_wise, whole, other_seed = tables(("row_wise",), 1), tables(("table_wise",), 1), tables(("row_wise",), 2)
    assert len(row_wise) == 2
    for name, values in row_wise.items():
        assert torch.equal(values, whole[name])
        assert not torch.equal(values, other_seed[name])
        bound = values.shape[0] ** -0.5
        assert 0.9 * bound < values.abs().max() <= bound
    assert all(0.009 < values.abs().max() <= 0.01 for values in tables(("row_wise",), 1, 0.01).values())


@pytest.mark.unit
def test_learning_rates_warm_up_and_decay_on_both_parts(world: World) -> None:
    rates = OptimizerConfig(warmup_steps=4, decay_steps=10, final_rate=0.1, sparse_learning_rate=0.5, dense_learning_rate=0.01)
    factors = [rate_factor(step, rates) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == pytest.approx(0.55) and factors[14:] == pytest.approx([0.1] * 6)
    optimizer = build_optimizer(
        shard_model(task("dot").module, world, sharding=ShardingConfig(), optimizer=rates, local_batch=ROWS), rates
    )
    set_learning_rates(optimizer, 1, rates)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25, 0.005}


@pytest.mark.unit
def test_rate_of_zero_moves_nothing_and_a_rate_moves_tables_and_dense_parts(world: World) -> None:
    """Warm-up must reach the fused kernel before the backward pass that applies it."""
    made = task("dot")
    rates = OptimizerConfig(decay_steps=1, final_rate=0.0)
    model = shard_model(made.module, world, sharding=ShardingConfig(), optimizer=rates, local_batch=ROWS)
    initialise_tables(model, 0.0, 1)
    optimizer = build_optimizer(model, rates)
    step = make_step(model, optimizer, world)

    def moved(at: int) -> set[str]:
        before = {name: _value(tensor).clone() for name, tensor in model.state_dict().items()}
        set_learning_rates(optimizer, at, rates)
        step(iter([made.to_batch(columns(at))]))
        return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], _value(tensor))}

    assert moved(0) == set(model.state_dict())
    assert moved(1) == set()


def trained(world: World, interaction: str, pipelined: bool) -> tuple[list[float], list[np.ndarray], dict[str, torch.Tensor]]:
    """Returns the losses, the predictions after each of two epochs, and this worker's weights."""
    made = task(interaction)
    model = shard_model(made.module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=ROWS)
    initialise_tables(model, 0.0, 1)
    optimizer = build_optimizer(model, OptimizerConfig())
    step = (pipelined_step if pipelined else make_step)(model, optimizer, world)
    losses: list[float] = []
    evaluated = []
    for first in (0, 5):
        batches = (made.to_batch(columns(world.size * seed + world.rank)) for seed in range(first, first + 5))
        losses += [
            float(loss)
            for loss in train_steps(step, batches, optimizer, loop=LoopConfig(), rates=OptimizerConfig(), done=first, rank=0)
        ]
        found = predict_split(model, made.predict, [made.to_batch(columns(99))], world.device)
        evaluated += [] if found is None else [found[0]]
    return losses, evaluated, {name: _value(tensor) for name, tensor in model.state_dict().items()}


def pipelined_as_plain(world: World, interaction: str) -> None:
    (plain_losses, plain_found, plain), (losses, found, weights) = (trained(world, interaction, way) for way in (False, True))
    assert len(losses) == 10 and losses == plain_losses
    assert len(found) == (2 if world.rank == 0 else 0) and np.array_equal(plain_found, found)
    assert not found or not np.array_equal(found[0], found[1])
    assert weights and all(torch.equal(plain[name], weights[name]) for name in plain)


def test_pipelined_epochs_train_and_evaluate_as_plain_ones(world: World) -> None:
    """TrainPipelineSparseDist, which GPUs use, runs on the CPU here, and equals the plain loop bit by bit."""
    pipelined_as_plain(world, "dcn")


def test_so_do_those_of_two_workers() -> None:
    run_workers(in_a_group, 2)


def in_a_group() -> None:
    with join_world(1) as world:
        pipelined_as_plain(world, "dot")


@pytest.mark.unit
def test_training_stops_at_max_steps(world: World) -> None:
    made = task("dot")
    model = shard_model(made.module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=ROWS)
    initialise_tables(model, 0.0, 1)
    optimizer = build_optimizer(model, OptimizerConfig())
    for step in (make_step(model, optimizer, world), pipelined_step(model, optimizer, world)):
        batches = (made.to_batch(columns(seed)) for seed in range(5))
        losses = list(
            train_steps(step, batches, optimizer, loop=LoopConfig(max_steps=4), rates=OptimizerConfig(), done=2, rank=0)
        )
        assert len(losses) == 2


def _parts(tables: Any) -> list[Any]:
    return [part for table in tables.values() for part in table.sharding_spec.shards]


def _value(tensor: Any) -> torch.Tensor:
    """Returns this worker's part of a tensor."""
    if not hasattr(tensor, "local_shards"):
        return tensor
    return torch.cat([part.tensor for part in tensor.local_shards()] or [torch.empty(0)])
