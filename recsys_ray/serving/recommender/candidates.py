"""Candidates for many users at once, by matrix products of query and item vectors: exact, and far faster than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

SCORES_AT_ONCE = 1 << 24
"""Scores of users and items that are held in memory together, 64 MB."""
SMALLEST_GROUP = 8
"""The items of a group below which `largest` does not pay."""
NONE = -1
"""The position of an item that is not there: a user has fewer candidates than others."""


class RetrievedItems(NamedTuple):
    """The best items of U users by the retrieval model, best first; places without an item are at the end."""

    positions: np.ndarray
    """int64 [U, n]: positions in the catalogue, or NONE."""
    scores: np.ndarray
    """float32 [U, n]; -inf for NONE."""


def exact_candidates(
    queries: np.ndarray, items: torch.Tensor, n: int, exclude: Sequence[np.ndarray], *, eligible: np.ndarray | None = None
) -> RetrievedItems:
    """Returns the n items with the highest dot products for each query.

    Args:
        queries: float32 [U, dim].
        items: float32 [N, dim], on the device that computes.
        exclude: for each query the positions of items that it must not get; may be empty.
        eligible: bool [N], the items that may be recommended at all; None: every one.
    """
    n = min(n, len(items))
    positions = np.full((len(queries), n), NONE, np.int64)
    scores = np.full((len(queries), n), -np.inf, np.float32)
    barred = None if eligible is None else torch.from_numpy(~eligible).to(items.device)
    step = max(1, SCORES_AT_ONCE // max(1, len(items)))
    # One buffer for all steps: a CPU takes as long to clear fresh pages as to multiply.
    buffer = torch.empty(min(step, len(queries)), len(items), device=items.device)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        some = torch.from_numpy(queries[part]).to(items.device)
        products = torch.mm(some, items.T, out=buffer[: len(some)])
        if barred is not None:
            products[:, barred] = -torch.inf
        if exclude:
            products[_pairs(exclude[part], items.device)] = -torch.inf
        best = largest(products, n)
        scores[part], positions[part] = best.scores, best.positions
    positions[np.isneginf(scores)] = NONE
    return RetrievedItems(positions, scores)


def largest(products: torch.Tensor, n: int) -> RetrievedItems:
    """Returns the n largest of each row of products, float32 [U, N], like torch.topk, which takes twice as long on a CPU.

    Of 2n groups of items, n have a maximum that is at least the n-th largest maximum. So the n largest items are at least as
    large as that, and few others are.
    """
    groups = 2 * n
    width = products.shape[1] // groups
    if products.is_cuda or width < SMALLEST_GROUP:
        best = torch.topk(products, n, dim=1)
        return RetrievedItems(best.indices.cpu().numpy(), best.values.cpu().numpy())
    maxima = products[:, : groups * width].unflatten(1, (groups, width)).amax(2)
    bounds = torch.topk(maxima, n, dim=1).values[:, -1:]
    large = torch.from_numpy(np.flatnonzero((products >= bounds).numpy()))
    row, position = large // products.shape[1], large % products.shape[1]
    starts = torch.searchsorted(row, torch.arange(len(products)))
    place = torch.arange(len(large)) - starts[row]
    widest = int(torch.bincount(row, minlength=len(products)).max())
    found = torch.full((len(products), max(n, widest)), -torch.inf)
    where = torch.zeros(found.shape, dtype=torch.int64)
    found[row, place], where[row, place] = products.view(-1)[large], position
    best = torch.topk(found, n, dim=1)
    return RetrievedItems(where.gather(1, best.indices).numpy(), best.values.numpy())


def _pairs(exclude: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows and columns of the scores to leave out."""
    rows = np.repeat(np.arange(len(exclude)), [len(positions) for positions in exclude])
    columns = np.concatenate([np.zeros(0, np.int64), *exclude]).astype(np.int64)
    known = columns >= 0
    return torch.from_numpy(rows[known]).to(device), torch.from_numpy(columns[known]).to(device)
