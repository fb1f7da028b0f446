"""Exact retrieval metrics against a plain ranking, and iALS against its normal equations."""

from __future__ import annotations

import math

import pytest
import torch

from recsys_ray.models.evaluation import retrieval_metrics as ranking
from recsys_ray.models.evaluation.baselines import solve_ials, train_ials
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, Ranked, rank_catalogue

pytestmark = pytest.mark.unit

USERS, ITEMS = 30, 40


def pairs(random: torch.Generator, each: int) -> Pairs:
    users = torch.arange(USERS).repeat_interleave(each)
    return Pairs.of(users, torch.randint(0, ITEMS, (len(users),), generator=random))


def expected(scores: torch.Tensor, relevant: Pairs, missing: torch.Tensor, seen: Pairs, k: int) -> dict[str, list[float]]:
    """Computes the metrics by sorting, user by user."""
    found: dict[str, list[float]] = {"recall": [], "ndcg": [], "hit_rate": [], "mrr": []}
    for user in range(USERS):
        hidden = set(seen.items[seen.users == user].tolist())
        chosen = set(relevant.items[relevant.users == user].tolist())
        order = [item for item in scores[user].argsort(descending=True).tolist() if item not in hidden]
        gains = [1 / math.log2(place + 2) for place in range(k)]
        hits = [item in chosen for item in order[:k]]
        most = min(k, len(chosen) + int(missing[user]))
        found["recall"].append(sum(hits) / most)
        found["ndcg"].append(sum(gain for gain, hit in zip(gains, hits, strict=False) if hit) / sum(gains[:most]))
        found["hit_rate"].append(float(any(hits)))
        found["mrr"].append(max((1 / (order.index(item) + 1) for item in chosen), default=0.0))
    return found


def ranked(scores: torch.Tensor, relevant: Pairs, missing: torch.Tensor, seen: Pairs, *metrics_at: int) -> Ranked:
    return rank_catalogue(
        lambda first, stop: scores[first:stop].clone(),
        relevant=relevant,
        missing=missing,
        seen=seen,
        num_items=scores.shape[1],
        metrics_at=metrics_at,
    )


@pytest.mark.parametrize("block", [1 << 25, 7 * ITEMS])
def test_metrics_are_those_of_a_plain_ranking(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "BLOCK_SCORES", block)
    random = torch.Generator().manual_seed(1)
    scores, seen = torch.rand(USERS, ITEMS, generator=random), pairs(random, 8)
    relevant = pairs(random, 3).without(seen, ITEMS)
    missing = torch.randint(0, 2, (USERS,), generator=random) + (torch.bincount(relevant.users, minlength=USERS) == 0)
    found = ranked(scores, relevant, missing, seen, 5, 10)
    for k in (5, 10):
        wanted = expected(scores, relevant, missing, seen, k)
        for name in ("recall", "ndcg", "hit_rate"):
            assert found.metrics[f"{name}_at_{k}"].tolist() == pytest.approx(wanted[name]), name
        assert found.metrics["mrr"].tolist() == pytest.approx(wanted["mrr"])
    top = {item for user in range(USERS) for item in _unseen(scores, seen, user)[:5]}
    assert set(found.recommended[5].nonzero().flatten().tolist()) == top


def _unseen(scores: torch.Tensor, seen: Pairs, user: int) -> list[int]:
    hidden = set(seen.items[seen.users == user].tolist())
    return [item for item in scores[user].argsort(descending=True).tolist() if item not in hidden]


def test_k_beyond_the_catalogue_finds_everything_that_is_in_it() -> None:
    """Seen items are never recommended, and items outside the catalogue are never found."""
    scores = torch.tensor([[0.3, 0.2, 0.1]])
    relevant, seen = Pairs.of(torch.tensor([0]), torch.tensor([2])), Pairs.of(torch.tensor([0]), torch.tensor([0]))
    found = ranked(scores, relevant, torch.tensor([1]), seen, 1000)
    assert found.metrics["recall_at_1000"].tolist() == [0.5]
    assert found.metrics["mrr"].tolist() == [0.5]
    assert found.recommended[1000].tolist() == [False, True, True]


def test_a_worker_without_users_has_nothing_to_add() -> None:
    nothing = Pairs.of(torch.zeros(0).long(), torch.zeros(0).long())
    found = ranked(torch.zeros(0, 4), nothing, torch.zeros(0).long(), nothing, 2)
    assert found.metrics and all(values.shape == (0,) for values in found.metrics.values()) and not found.recommended[2].any()


def test_a_choice_among_equal_scores_comes_last() -> None:
    relevant, seen = Pairs.of(torch.tensor([0]), torch.tensor([1])), Pairs.of(torch.zeros(0).long(), torch.zeros(0).long())
    assert ranked(torch.zeros(1, 4), relevant, torch.tensor([0]), seen, 1).metrics["mrr"].tolist() == [0.25]


def test_ials_solves_its_normal_equations_and_finds_planted_taste() -> None:
    random = torch.Generator().manual_seed(0)
    taste = torch.arange(USERS) % 2
    users = torch.arange(USERS).repeat_interleave(6)
    items = torch.randint(0, ITEMS // 2, (len(users),), generator=random) + ITEMS // 2 * taste[users]
    chosen = Pairs.of(users, items)
    factors = train_ials(chosen, USERS, ITEMS, dim=4)
    of_users = solve_ials(chosen, USERS, factors)
    own = factors[chosen.items[chosen.users == 3]]
    strength = 0.003 * (len(own) + 0.5 * ITEMS)
    gradient = own.T @ (own @ of_users[3] - 1) + 0.5 * factors.T @ factors @ of_users[3] + strength * of_users[3]
    assert gradient.abs().max() < 1e-4
    scores = of_users @ factors.T
    halves = scores.view(USERS, 2, -1).mean(dim=2)
    assert (halves.argmax(dim=1) == taste).all()
