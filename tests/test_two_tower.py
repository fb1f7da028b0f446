"""Two Tower's towers, batches and schema, in one process with a gloo group of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config import LoopConfig, OptimizerConfig, ShardingConfig
from recsys_ray.distributed import World
from recsys_ray.models.encoded_catalogue import EncodedCatalogue
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext, Task
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.models.two_tower_batch import candidate_batch, query_batch
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import make_step, pipelined_step, train_steps

USER = Categorical("user", "user", encoding="identity", num_embeddings=51, key=True)
ITEM = Categorical("item", "item", encoding="identity", num_embeddings=101, table="items", key=True)
COLUMNS: tuple[Column, ...] = (
    Label("label"),
    USER,
    Categorical("history", "user", encoding="identity", num_embeddings=101, table="items", multi=True),
    Categorical("hour", num_embeddings=25, encoding="identity"),
    Dense("age", "user"),
    ITEM,
    Categorical("tags", "item", num_embeddings=20, multi=True),
    Dense("price", "item"),
)
SCHEMA = Schema(COLUMNS)
ROWS, ITEMS = 64, 100


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(0, 1, 0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def many(name: str, rows: int, size: int, generator: torch.Generator, least: int = 0) -> dict[str, torch.Tensor]:
    lengths = torch.randint(least, 4, (rows,), generator=generator, dtype=torch.int32)
    values = torch.randint(0, size, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    return {name: values, f"{name}.lengths": lengths}


def columns(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "label": torch.randint(0, 2, (ROWS,), generator=generator).float(),
        "user": torch.randint(1, 51, (ROWS,), generator=generator, dtype=torch.int32),
        **many("history", ROWS, 101, generator),
        "hour": torch.randint(1, 25, (ROWS,), generator=generator, dtype=torch.int32),
        "age": torch.randn(ROWS, generator=generator),
        "item": torch.randint(1, 101, (ROWS,), generator=generator, dtype=torch.int32),
        **many("tags", ROWS, 20, generator),
        "price": torch.randn(ROWS, generator=generator),
        ROW_WEIGHT: torch.ones(ROWS),
    }


class Facts:
    """A catalogue of ITEMS items, whose frequency falls with their number."""

    def catalogue(self) -> tuple[Columns, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        items = {"item": torch.arange(1, ITEMS + 1, dtype=torch.int32), "price": torch.randn(ITEMS, generator=generator)}
        return {**items, **many("tags", ITEMS, 20, generator, least=1)}, 1000 / torch.arange(1.0, ITEMS + 1)

    def value_names(self, column: str) -> tuple[str, ...]:
        return ()


def catalogue() -> EncodedCatalogue:
    return EncodedCatalogue(*Facts().catalogue(), ITEM)


def task(schema: Schema = SCHEMA, **settings: Any) -> Task:
    model = TwoTowerConfig(**{"embedding_dim": 8, "query_layers": (16,), "candidate_layers": (16,), **settings})
    return build_task(model, BuildContext(schema, torch.device("cpu"), seed=1, dataset=Facts()))


def sharded(made: Task, world: World) -> Any:
    model = shard_model(made.module, world, sharding=ShardingConfig(), optimizer=OptimizerConfig(), local_batch=ROWS)
    initialise_tables(model, 0.3, 1)
    return model


@pytest.mark.parametrize("settings", [
    {"pooling": "attention", "pooled_values": 2, "uniform_negatives": 16},
    {"pooling": "mean", "normalize": True, "temperature": 0.1, "hard_negatives": 8},
    {"pooling": "sum", "loss": "bce", "query_layers": (), "candidate_layers": ()},
])  # fmt: skip
def test_pipelined_epochs_train_as_plain_ones(world: World, settings: dict[str, Any]) -> None:
    """TrainPipelineSparseDist, which GPUs use, runs on the CPU here, and equals the plain loop bit by bit."""

    def trained(pipelined: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        made = task(**settings)
        model = sharded(made, world)
        optimizer = build_optimizer(model, OptimizerConfig())
        step = (pipelined_step if pipelined else make_step)(model, optimizer, world)
        batches = (made.to_batch(columns(seed % 3)) for seed in range(12))
        losses = [
            float(loss)
            for loss in train_steps(step, batches, optimizer, loop=LoopConfig(), rates=OptimizerConfig(), done=0, rank=0)
        ]
        return losses, model.state_dict()

    (plain_losses, plain), (losses, weights) = trained(False), trained(True)
    assert losses == plain_losses and np.mean(losses[-3:]) < np.mean(losses[:3])
    assert all(torch.equal(_value(plain[name]), _value(weights[name])) for name in plain)


def _value(tensor: Any) -> torch.Tensor:
    return tensor.local_shards()[0].tensor if hasattr(tensor, "local_shards") else tensor


@pytest.mark.unit
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_one_side_alone_gives_the_vectors_of_both(world: World, pooling: str) -> None:
    """Rows without any history are among them."""
    made = task(pooling=pooling)
    model = sharded(made, world).eval().module.model
    batch = made.to_batch(columns(3))
    assert (columns(3)["history.lengths"] == 0).any()
    queries, candidates = model(batch.dense, batch.sparse)
    user_side = {name: values for name, values in columns(3).items() if name.split(".")[0] in ("user", "history", "hour", "age")}
    item_side = {name: values for name, values in columns(3).items() if name.split(".")[0] in ("item", "tags", "price")}
    assert torch.allclose(model.embed_query(query_batch(SCHEMA, user_side)), queries, atol=1e-6)
    assert torch.allclose(model.embed_candidate(candidate_batch(SCHEMA, item_side)), candidates, atol=1e-6)
    assert queries.isfinite().all()
    scores = made.predict(made.module, batch)
    assert torch.allclose(scores, (queries * candidates).sum(dim=1)[: len(scores)], atol=1e-6) and len(scores) == ROWS


@pytest.mark.unit
def test_no_layers_and_one_column_a_side_is_matrix_factorisation(world: World) -> None:
    made = task(Schema((USER, ITEM)), query_layers=(), candidate_layers=())
    model = sharded(made, world)
    assert build_optimizer(model, OptimizerConfig()).param_groups, "tables are all there is to train"
    batch = made.to_batch(columns(0))
    queries, candidates = model.eval().module.model(batch.dense, batch.sparse)
    tables = {name.split(".")[-2]: _value(tensor) for name, tensor in model.state_dict().items() if "table" in name}
    assert torch.allclose(queries, tables["user_table"][columns(0)["user"].long()], atol=1e-6)
    assert torch.allclose(candidates, tables["items_table"][columns(0)["item"].long()], atol=1e-6)
    assert batch.labels.tolist() == [1.0] * ROWS, "without a label every row is a positive one"


def test_attention_learns_which_position_counts(world: World) -> None:
    """Only the first value of a history decides the item, so the bias of its position grows beyond the others."""
    made = task(Schema((*COLUMNS[1:3], ITEM)), pooling="attention", pooled_values=3, query_layers=(), candidate_layers=())
    model = sharded(made, world)
    rates = OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.5, dense_learning_rate=0.05)
    step = make_step(model, build_optimizer(model, rates), world)
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        history = torch.randint(1, 101, (ROWS, 3), generator=random, dtype=torch.int32)
        rows = {**columns(0), "history": history.flatten(), "history.lengths": torch.full((ROWS,), 3, dtype=torch.int32)}
        step(iter([made.to_batch({**rows, "item": history[:, 0].contiguous()})]))
    (bias,) = (value for name, value in model.state_dict().items() if name.endswith("position_bias"))
    assert bias[0] > bias[1:].max() + 0.5


@pytest.mark.unit
def test_uniform_negatives_are_items_of_the_catalogue_drawn_by_the_batch(world: World) -> None:
    made = task(uniform_negatives=32)
    batch, again, other = (made.to_batch(columns(seed)) for seed in (0, 0, 1))
    assert len(batch.labels) == ROWS and len(batch.items) == len(batch.dense) == ROWS + 32
    assert torch.equal(batch.items, again.items) and not torch.equal(batch.items[ROWS:], other.items[ROWS:])
    own = catalogue()
    drawn = own.take(batch.items[ROWS:] - 1)
    sparse = batch.sparse.to_dict()
    assert torch.equal(batch.dense[ROWS:, 1], drawn["price"]) and (batch.dense[ROWS:, 0] == 0).all()
    assert torch.equal(sparse["tags"].values()[-int(drawn["tags.lengths"].sum()) :], drawn["tags"].long())
    assert (sparse["user"].lengths()[ROWS:] == 0).all() and (sparse["history"].lengths()[ROWS:] == 0).all()
    share = own.frequency / own.frequency.sum()
    expected = ((ROWS * share + 32 / ITEMS) / (ROWS + 32)).log()[batch.items - 1]
    assert torch.allclose(batch.log_q, expected)
    assert (task(log_q=False).to_batch(columns(0)).log_q == 0).all()


@pytest.mark.unit
@pytest.mark.parametrize(("kept", "message"), [
    ((COLUMNS[0], *COLUMNS[2:]), 'no user key: set "key": true at the column that tells users apart'),
    (COLUMNS[:5], 'no item key: set "key": true at the column that tells items apart'),
    ((*COLUMNS[:2], Categorical("item", "item", num_embeddings=9, key=True)), "item key 'item' is hashed"),
])  # fmt: skip
def test_schemas_that_cannot_be_retrieved_from_are_refused(kept: tuple[Column, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(Schema(kept))


@pytest.mark.unit
def test_losses_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="uniform and hard ones are the softmax's"):
        task(loss="bce", uniform_negatives=8)
    with pytest.raises(ValueError, match="bce wants a label column"):
        task(Schema(COLUMNS[1:]), loss="bce")


@pytest.mark.unit
def test_dlrm_without_a_label_is_refused() -> None:
    from recsys_ray.models.dlrm import DLRMConfig

    with pytest.raises(ValueError, match="no label column"):
        build_task(DLRMConfig(), BuildContext(Schema(COLUMNS[1:]), torch.device("cpu")))
