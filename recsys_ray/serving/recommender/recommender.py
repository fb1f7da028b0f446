"""The second stage: a ranking model scores the candidates of each user, and the best of them are recommended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from recsys_ray.schema import QUERY_SIDES
from recsys_ray.serving.encoder import RawRows, with_unknown
from recsys_ray.serving.ranker import Ranker
from recsys_ray.serving.recommender.candidates import NONE, RetrievedItems
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from recsys_ray.serving.retriever import Retriever

PAIRS_AT_ONCE = 1 << 11
"""About how many pairs of user and item are scored together: few enough for a core's own cache."""


class Recommendations(NamedTuple):
    """The k best items of U users, best first by the last stage; places without an item are at the end."""

    positions: np.ndarray
    """int64 [U, k]: positions in the catalogue, or NONE."""
    retrieval: np.ndarray
    """float32 [U, k]: the scores of the retrieval model."""
    ranking: np.ndarray
    """float32 [U, k]: the scores of the ranking model; NaN without one."""


@dataclass(frozen=True)
class Recommender:
    """A retrieval model, the catalogue, and a ranking model for the order of its candidates."""

    retriever: Retriever
    ranker: Ranker | None
    catalogue: ServedCatalogue

    def queries(self, users: RawRows) -> np.ndarray:
        """Returns the query vectors of users, float32 [U, dim]. A column that `users` does not have counts as unknown."""
        return self.retriever.embed_queries(with_unknown(users, self.retriever.schema.features_of(*QUERY_SIDES)))

    def recommend(self, users: RawRows, candidates: RetrievedItems, k: int) -> Recommendations:
        """Returns the k best of each user's candidates. Raises ValueError for a user's value that cannot be used."""
        if self.ranker is None:
            ranking = np.full_like(candidates.scores, np.nan)
            return _best(candidates, ranking, order_by=candidates.scores, k=k)
        return best_ranked(candidates, self.rank(users, candidates.positions), k)

    def rank(self, users: RawRows, positions: np.ndarray) -> np.ndarray:
        """Returns the ranking model's scores, as `rank_items` does."""
        assert self.ranker is not None
        return rank_items(self.ranker, self.catalogue, users, positions)


def rank_items(ranker: Ranker, catalogue: ServedCatalogue, users: RawRows, positions: np.ndarray) -> np.ndarray:
    """Returns the ranking model's scores of the items at `positions`, int64 [U, n], for each user: float32 [U, n].

    A user is looked up once, not once an item; a column that `users` does not have counts as unknown. The score of NONE
    is NaN.
    """
    assert catalogue.ranked_items is not None
    wanted = ranker.schema.features_of(*QUERY_SIDES)
    looked_up = ranker.look_up(ranker.encoder.encode(with_unknown(users, wanted), wanted), *QUERY_SIDES)
    scores = np.full(positions.shape, np.nan, np.float32)
    step = max(1, PAIRS_AT_ONCE // max(1, positions.shape[1]))
    for start in range(0, len(positions), step):
        some = positions[start : start + step]
        user, place = np.nonzero(some != NONE)
        pairs = torch.from_numpy(start + user), torch.from_numpy(some[user, place])
        scores[start + user, place] = ranker.score_pairs(looked_up, catalogue.ranked_items, *pairs)
    return scores


def best_ranked(candidates: RetrievedItems, ranking: np.ndarray, k: int) -> Recommendations:
    """Returns the k candidates of each user with the highest scores of the ranking model."""
    return _best(candidates, ranking, order_by=np.where(np.isnan(ranking), -np.inf, ranking), k=k)


def _best(candidates: RetrievedItems, ranking: np.ndarray, *, order_by: np.ndarray, k: int) -> Recommendations:
    """Returns the k candidates that are highest in `order_by`; among equals, those that the retrieval model put first."""
    order = np.argsort(-order_by, axis=1, kind="stable")[:, :k]
    found = (np.take_along_axis(values, order, axis=1) for values in (candidates.positions, candidates.scores, ranking))
    return Recommendations(*found)
