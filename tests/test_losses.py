"""The sampled softmax against its definition, and on two workers against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recsys_ray.models.losses import Candidates, sampled_softmax
from tests.support.workers import run_workers

ROWS, DIM = 24, 8


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns a batch with two uniform negatives for every three rows, repeated items, and rows of weight 0."""
    random = torch.Generator().manual_seed(seed)
    return {
        "queries": torch.randn(ROWS, DIM, generator=random),
        "vectors": torch.randn(ROWS, DIM, generator=random),
        "extra": torch.randn(ROWS // 3 * 2, DIM, generator=random),
        "items": torch.randint(0, 10, (ROWS,), generator=random),
        "extra_items": torch.randint(0, 10, (ROWS // 3 * 2,), generator=random),
        "log_q": -3 * torch.rand(10, generator=random),
        "weights": torch.randint(0, 3, (ROWS,), generator=random).float(),
    }


def loss_of(part: dict[str, torch.Tensor], hard: int = 0, temperature: float = 0.5) -> torch.Tensor:
    items = torch.cat([part["items"], part["extra_items"]])
    counted = torch.cat([part["weights"] > 0, torch.ones(len(part["extra"]), dtype=torch.bool)])
    own = Candidates(torch.cat([part["vectors"], part["extra"]]), items, part["log_q"][items], counted)
    return sampled_softmax(part["queries"], own, part["weights"], temperature=temperature, hard_negatives=hard)


def expected_loss(b: dict[str, torch.Tensor], hard: int = 0, temperature: float = 0.5) -> float:
    """Computes the loss row by row, from its definition."""
    items = torch.cat([b["items"], b["extra_items"]])
    vectors = torch.cat([b["vectors"], b["extra"]])
    total = 0.0
    for row in range(ROWS):
        scores = vectors @ b["queries"][row] / temperature - b["log_q"][items]
        negatives = torch.stack(
            [
                score
                for place, score in enumerate(scores)
                if items[place] != items[row] and (place >= ROWS or b["weights"][place] > 0)
            ]
        )
        losses = [torch.logsumexp(torch.cat([scores[row : row + 1], negatives]), 0) - scores[row]]
        if hard:
            hardest = negatives.topk(hard).values
            losses.append(torch.logsumexp(torch.cat([scores[row : row + 1], hardest]), 0) - scores[row])
        total += float(b["weights"][row]) * float(torch.stack(losses).mean())
    return total / float(b["weights"].sum())


@pytest.mark.unit
@pytest.mark.parametrize("hard", [0, 3])
def test_softmax_is_its_definition(hard: int) -> None:
    """Scores are corrected by log Q; accidental hits and rows of weight 0 are no negatives; hard negatives are averaged in."""
    found = loss_of(batch(), hard)
    assert float(found) == pytest.approx(expected_loss(batch(), hard), rel=1e-5)
    without = {**batch(), "log_q": torch.zeros(10)}
    assert abs(float(loss_of(without, hard)) - float(found)) > 0.01


@pytest.mark.unit
def test_more_hard_negatives_than_candidates_are_all_of_them() -> None:
    assert float(loss_of(batch(), hard=10_000)) == pytest.approx(float(loss_of(batch())), rel=1e-5)


def share_of(whole: dict[str, torch.Tensor], rank: int, workers: int) -> dict[str, torch.Tensor]:
    return {name: part if name == "log_q" else part.chunk(workers)[rank] for name, part in whole.items()}


def on_a_worker(out: str, hard: int) -> None:
    dist.init_process_group("gloo")
    part = {name: value.clone() for name, value in share_of(batch(), dist.get_rank(), dist.get_world_size()).items()}
    parts = [part[name].requires_grad_() for name in ("queries", "vectors", "extra")]
    loss = loss_of(part, hard)
    loss.backward()
    torch.save([loss.detach(), *(one.grad for one in parts)], f"{out}/{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """The global batch is the same. Gradients are averaged over workers, as DDP and TorchRec do."""
    run_workers(on_a_worker, 2, str(tmp_path), 3)
    whole = {name: value.clone() for name, value in batch().items()}
    parts = [whole[name].requires_grad_() for name in ("queries", "vectors", "extra")]
    loss = loss_of(whole, 3)
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert float(sum(one[0] for one in found) / 2) == pytest.approx(float(loss.detach()), abs=1e-5)
    for number, one in enumerate(parts, 1):
        assert one.grad is not None and one.grad.abs().max() > 1e-3
        assert torch.allclose(torch.cat([rank[number] for rank in found]) / 2, one.grad, atol=1e-5)
