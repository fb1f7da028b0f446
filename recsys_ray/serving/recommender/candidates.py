"""Candidates for many users at once, by matrix products of query and item vectors: exact, and far faster than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

SCORES_AT_ONCE = 1 << 24
"""Scores of users and items that are held in memory together, 64 MB."""
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
        best = torch.topk(products, n, dim=1)
        scores[part], positions[part] = best.values.cpu().numpy(), best.indices.cpu().numpy()
    positions[np.isneginf(scores)] = NONE
    return RetrievedItems(positions, scores)


def _pairs(exclude: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows and columns of the scores to leave out."""
    rows = np.repeat(np.arange(len(exclude)), [len(positions) for positions in exclude])
    columns = np.concatenate([np.zeros(0, np.int64), *exclude]).astype(np.int64)
    known = columns >= 0
    return torch.from_numpy(rows[known]).to(device), torch.from_numpy(columns[known]).to(device)
