"""What only a single worker does: it looks tables up without an exchange, as TorchRec does with one, and can compile its step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import graphed_step, plain_step

pytestmark = pytest.mark.unit

ROWS, SHORT, STEPS = 64, 24, 4
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
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


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def columns(rows: int, seed: int) -> Columns:
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
    """A model with its optimizer, and the losses of its steps; the last batch is a short one."""

    def __init__(self, interaction: str = "dot", precision: torch.dtype | None = None) -> None:
        config = DLRMConfig(interaction=interaction, embedding_dim=8, cross_rank=4)  # type: ignore[arg-type]
        self.task = build_task(config, BuildContext(SCHEMA, ALONE.device, precision))
        optimizer = OptimizerConfig()
        self.model = shard_model(
            self.task.module,
            ALONE,
            sharding=ShardingConfig(),
            optimizer=optimizer,
            local_batch=ROWS,
            lookup_type=precision,
        )
        initialise_tables(self.model, 0.0, 0)
        self.optimizer = build_optimizer(self.model, optimizer)

    def losses(self, step: object = None) -> list[float]:
        sizes = [ROWS] * STEPS + [SHORT]
        batches = chain(self.task.to_batch(columns(rows, seed)) for seed, rows in enumerate(sizes))
        call = step or (lambda batches: plain_step(self.model, self.optimizer, batches))
        return [float(call(batches)["loss"]) for _ in sizes]  # type: ignore[operator]


def test_tables_are_looked_up_as_by_torchrec() -> None:
    ours, theirs = Training(), Training()
    replaced = [part for part in theirs.model.modules() if isinstance(part, ShardedEmbeddingBagCollection)]
    assert len(replaced) == 1
    for part in replaced:
        del part.forward  # what TorchRec's class has shows again
    assert ours.losses() == theirs.losses()
    for (name, mine), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        pair = [one.local_shards()[0].tensor if hasattr(one, "local_shards") else one for one in (mine, other)]
        assert torch.equal(*pair), name


@pytest.mark.parametrize("interaction", ["dot", "dcn"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_step_in_two_parts_trains_as_the_plain_one(interaction: str, precision: torch.dtype | None) -> None:
    """By the backend that traces and differentiates like the default one, and generates no code. A GPU captures the same step."""
    expected, parts = Training(interaction, precision).losses(), Training(interaction, precision)
    torch._dynamo.reset()
    counters.clear()
    assert parts.task.split is not None
    found = parts.losses(graphed_step(parts.model, parts.optimizer, parts.task.split, ROWS, backend="aot_eager"))
    assert found == pytest.approx(expected, abs=1e-6 if precision is None else 1e-3)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], "one graph, also with a short batch"
    (group,) = dict(parts.optimizer.optimizers)["dense"].param_groups
    assert group["lr"] == OptimizerConfig().dense_learning_rate and not group["capturable"], "as they are kept in checkpoints"
