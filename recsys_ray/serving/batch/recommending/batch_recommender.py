"""Recommendations for users with the items that they have seen, from an Arrow table to an Arrow table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.serving.batch.partitioned.output import BatchResult
from recsys_ray.serving.batch.recommending.known_users import reasons_for_popular
from recsys_ray.serving.batch.recommending.seen_items import SEEN
from recsys_ray.serving.batch.scoring.scorer import utc_now
from recsys_ray.serving.recommender.candidates import NONE, exact_candidates
from recsys_ray.serving.recommender.recommender import Recommendations, Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue

USERS_RECOMMENDED_AT_ONCE = 256
"""Users whose candidates are held in memory together."""
ADDED_BY_RECOMMENDING = (
    "place",
    "retrieval_score",
    "ranking_score",
    "popular",
    "reason",
    "retriever_version",
    "ranker_version",
    "recommended_at",
)
"""The columns of the output besides the keys of user and item and the item's own columns."""


class RecommendSizes(NamedTuple):
    """A request for every user."""

    candidates: int
    k: int
    item_columns: tuple[str, ...]
    """Columns of the catalogue to copy into the output."""


@dataclass(frozen=True)
class BatchRecommender:
    """Two models and a catalogue as a function of Arrow tables."""

    recommender: Recommender
    vectors: torch.Tensor
    """float32 [N, dim]: the vector of each item of the catalogue."""
    request: RecommendSizes

    def recommend_all(self, users: pa.Table) -> Iterator[BatchResult]:
        """Yields recommendations for users in turn, so that few of them are in memory together."""
        for start in range(0, max(users.num_rows, 1), USERS_RECOMMENDED_AT_ONCE):
            yield self(users.slice(start, USERS_RECOMMENDED_AT_ONCE))

    def __call__(self, users: pa.Table) -> BatchResult:
        """Returns k rows for each user, best first, and fewer where the catalogue has no more that they have not seen.

        `users` has raw columns and SEEN. Users whom the models do not know get the most frequent items of the training rows.
        """
        ranker = self.recommender.ranker
        reasons = reasons_for_popular(users, self.recommender.retriever.encoder, ranker.encoder if ranker else None)
        popular = reasons != None  # noqa: E711 (element by element)
        seen = seen_positions(users, self.recommender.catalogue)
        found = nothing(users.num_rows, self.request.k)
        for chosen, recommend in ((~popular, self._personal), (popular, self._popular)):
            rows = np.flatnonzero(chosen)
            if len(rows):
                put(found, rows, recommend(users.take(pa.array(rows)), [seen[row] for row in rows]))
        counts = {
            "users": users.num_rows,
            "users_with_popular_items": int(popular.sum()),
            "users_with_fewer_than_k": int((found.positions == NONE).any(axis=1).sum()),
        }
        return BatchResult(self._table(users, found, reasons), counts)

    def _personal(self, users: pa.Table, seen: list[np.ndarray]) -> Recommendations:
        candidates = exact_candidates(self.recommender.queries(users), self.vectors, self.request.candidates, seen)
        return self.recommender.recommend(users, candidates, self.request.k)

    def _popular(self, users: pa.Table, seen: list[np.ndarray]) -> Recommendations:
        """Returns the most frequent items, without scores: no model has scored them."""
        positions = np.full((users.num_rows, self.request.k), NONE)
        for row, hidden in zip(positions, seen, strict=True):
            head = self._by_frequency[: self.request.k + len(hidden)]
            left = head[~np.isin(head, hidden)][: self.request.k]
            row[: len(left)] = left
        nan = np.full(positions.shape, np.nan, np.float32)
        return Recommendations(positions, nan, nan)

    @cached_property
    def _by_frequency(self) -> np.ndarray:
        """The positions of all items, most frequent first."""
        return np.argsort(-self.recommender.catalogue.frequency, kind="stable")

    def _table(self, users: pa.Table, found: Recommendations, reasons: np.ndarray) -> pa.Table:
        user, column = np.nonzero(found.positions != NONE)
        items = pa.array(found.positions[user, column])
        of_user, catalogue = pa.array(user), self.recommender.catalogue
        retriever, ranker = self.recommender.retriever, self.recommender.ranker
        retrieval, ranking = (scores[user, column] for scores in (found.retrieval, found.ranking))
        reason = pa.array(reasons, pa.string()).take(of_user)
        columns = {
            retriever.user_key: users[retriever.user_key].take(of_user),
            "place": pa.array(column + 1, pa.int32()),
            **{name: catalogue.raw[name].take(items) for name in (retriever.item_key, *self.request.item_columns)},
            "retrieval_score": pa.array(retrieval, mask=np.isnan(retrieval)),
            "ranking_score": pa.array(ranking, mask=np.isnan(ranking)),
            "popular": reason.is_valid(),
            "reason": reason,
            "retriever_version": pa.repeat(retriever.version, len(user)),
            "ranker_version": pa.repeat(pa.scalar(ranker.version if ranker else None, pa.string()), len(user)),
            "recommended_at": pa.repeat(utc_now(), len(user)),
        }
        return pa.table(columns)


def seen_positions(users: pa.Table, catalogue: ServedCatalogue) -> list[np.ndarray]:
    """Returns the positions in the catalogue of the items that each user has seen; those of other items are left out."""
    lists = users[SEEN].combine_chunks()
    positions = catalogue.positions(lists.flatten())
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return [found[found >= 0] for found in np.split(positions, np.cumsum(lengths)[:-1])]


def nothing(users: int, k: int) -> Recommendations:
    """Returns recommendations without any item."""
    positions = np.full((users, k), NONE)
    return Recommendations(positions, *(np.full(positions.shape, np.nan, np.float32) for _ in range(2)))


def put(all_users: Recommendations, rows: np.ndarray, found: Recommendations) -> None:
    """Copies the recommendations of some users, which may have fewer places, to their rows among all users."""
    for whole, part in zip(all_users, found, strict=True):
        whole[rows, : part.shape[1]] = part
