"""What only a single worker does: it looks tables up without an exchange, as TorchRec does with one, and can compile its step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from recsys_ray.distributed import World
from recsys_ray.training.steps import graphed_step
from tests.support.single_worker import RATES, ROWS, Training, alone

pytestmark = pytest.mark.unit

ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


@pytest.fixture
def world() -> Iterator[World]:
    with alone() as world:
        yield world


def test_tables_are_looked_up_as_by_torchrec(world: World) -> None:
    ours, theirs = Training(world), Training(world)
    replaced = [part for part in theirs.model.modules() if isinstance(part, ShardedEmbeddingBagCollection)]
    assert len(replaced) == 1
    for part in replaced:
        del part.forward  # what TorchRec's class has shows again
    assert ours.losses() == theirs.losses()
    for (name, mine), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        pair = [one.local_shards()[0].tensor if hasattr(one, "local_shards") else one for one in (mine, other)]
        assert torch.equal(*pair), name


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("interaction", ["dot", "dcn"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_step_in_two_parts_trains_as_the_plain_one(device: str, interaction: str, precision: torch.dtype | None) -> None:
    """By the backend that traces and differentiates like the default one, and generates no code. A GPU captures the same step."""
    torch._dynamo.reset()
    counters.clear()
    with alone(device) as world:
        expected, parts = Training(world, interaction, precision).losses(), Training(world, interaction, precision)
        assert parts.task.split is not None
        found = parts.losses(graphed_step(parts.model, parts.optimizer, parts.task.split, ROWS, backend="aot_eager"))
    assert found == pytest.approx(expected, abs=1e-5 if precision is None else 2e-3)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], "one graph, also with short batches"
    (group,) = dict(parts.optimizer.optimizers)["dense"].param_groups
    assert group["lr"] == RATES.dense_learning_rate and not group["capturable"], "as they are kept in checkpoints"
