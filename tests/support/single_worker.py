"""A single worker that trains a small DLRM, without a launcher, on batches of which the last is a short one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer, set_learning_rates
from recsys_ray.training.steps import Step, plain_step

ROWS, SHORT = 64, 24
SIZES = (ROWS, ROWS, SHORT, ROWS, ROWS, SHORT)
"""The rows of each batch."""
RATES = OptimizerConfig(warmup_steps=4)
SCHEMA = Schema(
    (
        Label("label"),
        Dense("price"),
        Categorical("user", num_embeddings=50, side="user"),
        Categorical("seen", num_embeddings=30, multi=True, table="item", side="user"),
        Categorical("country", num_embeddings=7, side="user"),
        Categorical("item", num_embeddings=30, table="item", side="item"),
    )
)
"""Features that share a table come from the lookup in another order than in the schema."""


@contextmanager
def alone(device: str = "cpu") -> Iterator[World]:
    """Joins a process group of this process alone within the block."""
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    on_gpu = device == "cuda"
    yield World(0, 1, 0, 1, torch.device(device, 0 if on_gpu else None), device_indices=(0,) if on_gpu else ())
    dist.destroy_process_group()


def columns(rows: int, seed: int) -> Columns:
    """Returns random columns of the schema."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (rows,), generator=generator, dtype=torch.int32)

    def ids(table: int, count: int = rows) -> torch.Tensor:
        return torch.randint(0, table, (count,), generator=generator, dtype=torch.int32)

    return {
        "label": torch.randint(0, 2, (rows,), generator=generator).float(),
        "price": torch.rand(rows, generator=generator),
        "user": ids(50),
        "seen": ids(30, int(lengths.sum())),
        "seen" + LENGTHS: lengths,
        "country": ids(7),
        "item": ids(30),
        ROW_WEIGHT: torch.ones(rows),
    }


class Training:
    """A model with its optimizer, which begins with the same weights every time."""

    def __init__(self, world: World, interaction: str = "dot", precision: torch.dtype | None = None) -> None:
        config = DLRMConfig(interaction=interaction, embedding_dim=8, cross_rank=4)  # type: ignore[arg-type]
        self.device = world.device
        self.task = build_task(config, BuildContext(SCHEMA, world.device, precision))
        self.model = shard_model(
            self.task.module,
            world,
            sharding=ShardingConfig(memory_gib=1),
            optimizer=RATES,
            local_batch=ROWS,
            lookup_type=precision,
        )
        initialise_tables(self.model, 0.0, 0)
        self.optimizer = build_optimizer(self.model, RATES)

    def losses(self, step: Step | None = None) -> list[float]:
        """Trains by `step`, or plainly, with learning rates that grow, and returns the losses."""
        batches = self._batches()
        found = []
        for number in range(len(SIZES)):
            set_learning_rates(self.optimizer, number, RATES)
            found.append(step(batches) if step else plain_step(self.model, self.optimizer, batches))
        return [float(outputs["loss"]) for outputs in found]

    def _batches(self) -> Iterator[Batch]:
        for seed, rows in enumerate(SIZES):
            yield self.task.to_batch({name: values.to(self.device) for name, values in columns(rows, seed).items()})
