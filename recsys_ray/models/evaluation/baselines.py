"""iALS, implicit alternating least squares: a baseline that a retrieval model should beat, for one machine."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from recsys_ray.models.evaluation.retrieval_metrics import Pairs

BATCH_VALUES = 1 << 20


def train_ials(
    pairs: Pairs,
    users: int,
    items: int,
    *,
    dim: int = 64,
    unobserved: float = 0.5,
    regularization: float = 0.003,
    sweeps: int = 10,
) -> torch.Tensor:
    """Returns item factors, float32 [items, dim], learned from what users chose.

    The method is that of Hu et al. 2008, "Collaborative Filtering for Implicit Feedback Datasets", in the form of Rendle et al.
    2021, arXiv:2110.14037: `unobserved` is the weight of what was not chosen, and the regularization of a factor grows with its
    number of pairs.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(items, dim, generator=generator) * 0.1 / dim**0.5
    by_item = Pairs.of(pairs.items, pairs.users)
    for _ in range(sweeps):
        of_users = solve_ials(pairs, users, factors, unobserved=unobserved, regularization=regularization)
        factors = solve_ials(by_item, items, of_users, unobserved=unobserved, regularization=regularization)
    return factors


def solve_ials(
    pairs: Pairs, rows: int, factors: torch.Tensor, *, unobserved: float = 0.5, regularization: float = 0.003
) -> torch.Tensor:
    """Returns the factors [rows, dim] of the users in `pairs`, given those of the items. It also folds in new users."""
    dim, found = factors.shape[1], torch.zeros(rows, factors.shape[1])
    everything = unobserved * factors.T @ factors
    counts = torch.bincount(pairs.users, minlength=rows)
    starts = torch.cumsum(counts, 0) - counts
    for batch in _batches(counts):
        most = int(counts[batch].max())
        place = torch.arange(most)
        there = place < counts[batch].unsqueeze(1)
        chosen = pairs.items[(starts[batch].unsqueeze(1) + place).clamp(max=len(pairs.items) - 1)]
        own = factors[chosen] * there.unsqueeze(2)
        strength = regularization * (counts[batch] + unobserved * len(factors))
        system = own.transpose(1, 2) @ own + everything + strength[:, None, None] * torch.eye(dim)
        found[batch] = torch.linalg.solve(system, own.sum(dim=1))
    return found


def _batches(counts: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the rows that have pairs, those with about equally many together."""
    order = torch.argsort(counts)
    order = order[counts[order] > 0]
    first = 0
    while first < len(order):
        size = 1
        while first + size < len(order) and (size + 1) * int(counts[order[first + size]]) <= BATCH_VALUES // 16:
            size += 1
        yield order[first : first + size]
        first += size
