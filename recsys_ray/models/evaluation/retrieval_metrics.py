"""Exact retrieval metrics: every user's query is scored against the whole catalogue, in blocks, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

BLOCK_SCORES = 1 << 25
"""Scores in memory at once: 128 MiB."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of a user (int64, a position in some list of users) and an item (int64, a position in the catalogue), by user."""

    users: torch.Tensor
    items: torch.Tensor

    @staticmethod
    def of(users: torch.Tensor, items: torch.Tensor) -> Pairs:
        """Returns the pairs sorted, each once."""
        size = int(items.max()) + 1 if len(items) else 1
        codes = torch.unique(users * size + items)
        return Pairs(codes // size, codes % size)

    def between(self, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the pairs of users first to stop - 1, users counted from `first`."""
        start, end = torch.searchsorted(self.users, torch.tensor([first, stop], device=self.users.device)).tolist()
        return self.users[start:end] - first, self.items[start:end]

    def codes(self, num_items: int) -> torch.Tensor:
        """Returns one number for each pair, ascending where all items are below `num_items`."""
        return self.users * num_items + self.items

    def without(self, other: Pairs, num_items: int) -> Pairs:
        """Returns the pairs that `other` lacks."""
        kept = ~torch.isin(self.codes(num_items), other.codes(num_items))
        return Pairs(self.users[kept], self.items[kept])

    def to(self, device: torch.device) -> Pairs:
        """Returns the pairs on `device`."""
        return Pairs(self.users.to(device), self.items.to(device))


@dataclass(frozen=True)
class Ranked:
    """The metrics of U users, and which items were recommended to any of them."""

    metrics: dict[str, torch.Tensor]
    """Metric name -> its value for each user, float64 [U]."""
    recommended: dict[int, torch.Tensor]
    """k -> bool [N]: whether any user has the item among the first k."""


def metric_names(metrics_at: tuple[int, ...]) -> list[str]:
    """Returns the names of the metrics, in the order in which they are reported."""
    return [f"{name}_at_{k}" for k in metrics_at for name in ("recall", "ndcg", "hit_rate")] + ["mrr"]


def rank_catalogue(
    score: Callable[[int, int], torch.Tensor],
    *,
    relevant: Pairs,
    missing: torch.Tensor,
    seen: Pairs,
    num_items: int,
    metrics_at: tuple[int, ...],
) -> Ranked:
    """Ranks all items of the catalogue but the `seen` ones for every user.

    Args:
        score: score(first, stop) returns float32 [stop - first, num_items], the scores of users first to stop - 1.
        relevant: what each of the U users chose, seen items excluded.
        missing: int64 [U], how many choices are not in the catalogue, so that no ranking can find them.
        seen: items that are not to be recommended again.
        num_items: items in the catalogue.
        metrics_at: the k of the metrics below.

    recall@k: share of the choices found among the first k, of at most k (Liang et al. 2018, arXiv:1802.05814). NDCG@k: gain
    1 / log2(1 + rank), over the best possible. hit rate@k: whether any was found. MRR: 1 / rank of the first found, over the
    whole catalogue; of items with equal scores the chosen one comes last.
    """
    users = len(missing)
    depth, device = min(max(metrics_at), num_items), missing.device
    chosen = torch.bincount(relevant.users, minlength=users) + missing
    recommended = {k: torch.zeros(num_items, dtype=torch.bool, device=device) for k in metrics_at}
    parts: list[dict[str, torch.Tensor]] = []
    for first, stop in _blocks(users, num_items):
        scores = score(first, stop)
        scores[seen.between(first, stop)] = -torch.inf
        top = scores.topk(depth, dim=1)
        real = top.values > -torch.inf
        for k, found in recommended.items():
            found[top.indices[:, :k][real[:, :k]]] = True
        own, items = relevant.between(first, stop)
        hits = torch.isin(
            torch.arange(stop - first, device=device).unsqueeze(1) * num_items + top.indices, own * num_items + items
        )
        parts.append(_at_each(hits & real, chosen[first:stop], metrics_at) | {"mrr": _reciprocal_rank(scores, own, items)})
    return Ranked({name: torch.cat([part[name] for part in parts]) for name in metric_names(metrics_at)}, recommended)


def _blocks(users: int, num_items: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of users whose scores fit in memory; at least one, since a worker may have no users."""
    size = max(1, BLOCK_SCORES // num_items)
    return ((first, min(first + size, users)) for first in range(0, max(users, 1), size))


def _at_each(hits: torch.Tensor, chosen: torch.Tensor, metrics_at: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Returns the metrics at each k. hits: bool [users, depth], by rank. chosen: int64 [users], how many there were to find."""
    gains = 1 / torch.log2(torch.arange(2, max(metrics_at) + 2, device=hits.device, dtype=torch.float64))
    metrics = {}
    for k in metrics_at:
        found, most = hits[:, :k], chosen.clamp(max=k)
        metrics[f"recall_at_{k}"] = found.sum(dim=1) / most.double()
        ideal = torch.cumsum(gains[:k], 0)[most - 1]
        metrics[f"ndcg_at_{k}"] = (found * gains[: found.shape[1]]).sum(dim=1) / ideal
        metrics[f"hit_rate_at_{k}"] = found.any(dim=1).double()
    return metrics


def _reciprocal_rank(scores: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    best = torch.full((len(scores),), -torch.inf, device=scores.device).scatter_reduce(0, users, scores[users, items], "amax")
    ranks = (scores >= best.unsqueeze(1)).sum(dim=1)
    return torch.where(best > -torch.inf, 1 / ranks.double(), 0.0)
