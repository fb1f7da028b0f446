"""A small DLRM that trains on random rows, in a process group of one or two workers, under any sharding configuration."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.checkpoint.restore import restore
from recsys_ray.checkpoint.saver import Saver
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.columns import LENGTHS, ROW_WEIGHT
from recsys_ray.config import LoopConfig, OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.placement import table_shards
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.checkpointing.optimizer_migration import restore_optimizer
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import make_step, pipelined_step, train_steps

SCHEMA = Schema(
    (
        Label("label"),
        Dense("age"),
        Categorical("item", "item", num_embeddings=3000, table="items"),
        Categorical("history", "user", num_embeddings=3000, table="items", multi=True),
        Categorical("city", "user", num_embeddings=50),
        Categorical("day", "user", num_embeddings=8),
    )
)
ROWS = 64


def rows_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def ids(rows: int, most: int) -> torch.Tensor:
        # Squared, so that some rows occur several times in a batch.
        return (torch.rand(rows, generator=generator) ** 2 * most).to(torch.int32)

    lengths = torch.randint(0, 4, (ROWS,), generator=generator, dtype=torch.int32)
    city = ids(ROWS, 50)
    return {
        "label": (city % 2).float(),
        "age": torch.randn(ROWS, generator=generator),
        "item": ids(ROWS, 3000),
        "history": ids(int(lengths.sum()), 3000),
        "history" + LENGTHS: lengths,
        "city": city,
        "day": ids(ROWS, 8),
        ROW_WEIGHT: torch.ones(ROWS),
    }


class Training:
    """A small DLRM under one sharding configuration."""

    def __init__(self, world: World, sharding: ShardingConfig, kind: str = "rowwise_adagrad", pooling: str = "mean") -> None:
        self.rates = OptimizerConfig(sparse=kind, dense_learning_rate=1e-2)  # type: ignore[arg-type]
        config = DLRMConfig(interaction="dot", embedding_dim=8, dense_layers=(8,), over_layers=(16,), pooling=pooling)  # type: ignore[arg-type]
        self.world, self.task = world, build_task(config, BuildContext(SCHEMA, torch.device("cpu"), seed=1))
        self.model = shard_model(self.task.module, world, sharding=sharding, optimizer=self.rates, local_batch=ROWS)
        initialise_tables(self.model, 0.0, 1)
        self.optimizer = build_optimizer(self.model, self.rates)

    def run(self, first: int, steps: int, *, pipelined: bool = False) -> list[float]:
        """Trains, and returns each step's loss, the mean over all workers."""
        step = (pipelined_step if pipelined else make_step)(self.model, self.optimizer, self.world)
        batches = (self._batch(number) for number in range(first, first + steps))
        found = list(
            train_steps(step, batches, self.optimizer, loop=LoopConfig(), rates=self.rates, done=first, rank=self.world.rank)
        )
        losses = torch.stack(found).detach()
        dist.all_reduce(losses)
        return (losses / self.world.size).tolist()

    def _batch(self, number: int) -> Any:
        """Returns this worker's half of a step's rows; a single worker has both halves."""
        halves = [rows_of(2 * number + half) for half in range(2)]
        whole = {name: torch.cat([part[name] for part in halves]) for name in halves[0]}
        return self.task.to_batch(halves[self.world.rank] if self.world.size == 2 else whole)

    def kinds(self) -> set[str]:
        """Returns the sharding types of the plan."""
        return {shard.sharding for shard in table_shards(self.model)}

    def save(self, store: CheckpointStore, step: int) -> None:
        saver = Saver(store, keep_last=99)
        saver.save(step, {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, {})
        saver.close()

    def restore(self, store: CheckpointStore, step: int) -> None:
        state = {"model": self.model.state_dict()}
        restore(store, step, state)
        self.model.load_state_dict(state["model"])
        restore_optimizer(store, step, self.model, self.optimizer)
