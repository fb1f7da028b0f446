"""The second deployment: the ranking model puts the candidates of many users in order, all that wait together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray import serve

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.schema import QUERY_SIDES
from recsys_ray.serving.app.deployments.tasks import REQUESTS_AT_ONCE, ModelSources, RankedItems, RankingTask, Refused, RowScores
from recsys_ray.serving.app.deployments.users import raw_table
from recsys_ray.serving.bundle import load_ranker
from recsys_ray.serving.recommender.candidates import NONE, RetrievedItems
from recsys_ray.serving.recommender.recommender import Recommendations, best_ranked, rank_items
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue


class Ranking:
    """A replica with the ranking model and the catalogue, whose item columns are encoded once."""

    def __init__(self, sources: ModelSources, dataset: str, item_key: str) -> None:
        torch.set_num_threads(sources.threads)
        self.ranker = load_ranker(sources.ranker, engine=sources.inference, tables=sources.tables)
        self.catalogue = ServedCatalogue.load(DatasetDirectory.open(dataset), item_key, self.ranker)
        self.wanted = self.ranker.schema.features_of(*QUERY_SIDES)

    def versions(self) -> str:
        """Returns the version of the model."""
        return self.ranker.version

    @serve.batch(max_batch_size=REQUESTS_AT_ONCE, batch_wait_timeout_s=0)
    async def rank(self, tasks: list[RankingTask]) -> list[RankedItems | Refused]:
        """Returns the k best of each task's items. All that wait are scored together."""
        return self._rank_each(tasks)

    def _rank_each(self, tasks: list[RankingTask]) -> list[RankedItems | Refused]:
        """Tries all together; where that fails, each alone, so that one bad request does not spoil another."""
        try:
            return self._rank(tasks)
        except ValueError as error:
            if len(tasks) == 1:
                return [Refused(str(error))]
            return [ranked for task in tasks for ranked in self._rank_each([task])]

    def _rank(self, tasks: list[RankingTask]) -> list[RankedItems | Refused]:
        width = max(len(task.items) for task in tasks)
        positions, scores = np.full((len(tasks), width), NONE), np.full((len(tasks), width), -np.inf, np.float32)
        for row, task in enumerate(tasks):
            scores[row, : len(task.items)] = task.scores
            positions[row, : len(task.items)] = self.catalogue.positions(task.items)
        personal = [row for row, task in enumerate(tasks) if task.personal]
        ranked = {row: self._as_they_are(task) for row, task in enumerate(tasks) if not task.personal}
        if personal:
            users, most = raw_table([tasks[row].user for row in personal], self.wanted), max(tasks[row].k for row in personal)
            candidates = RetrievedItems(positions[personal], scores[personal])
            found = best_ranked(candidates, rank_items(self.ranker, self.catalogue, users, candidates.positions), most)
            ranked |= {row: self._items(Recommendations(*one), tasks[row]) for row, *one in zip(personal, *found, strict=True)}
        return [ranked[row] for row in range(len(tasks))]

    def _as_they_are(self, task: RankingTask) -> RankedItems:
        positions = self.catalogue.positions(task.items)[: task.k]
        none = np.full(len(positions), np.nan, np.float32)
        return self._items(Recommendations(positions, none, none), task)

    def _items(self, found: Recommendations, task: RankingTask) -> RankedItems:
        kept = found.positions[: task.k] != NONE
        positions, *scores = (values[: task.k][kept] for values in found)
        retrieval, ranking = ([_number(score) for score in some.tolist()] for some in scores)
        keys = self.catalogue.keys(positions).to_pylist()
        rows = self.described(positions, task.columns)
        names = ("item", "retrieval_score", "ranking_score", "columns")
        return RankedItems(
            [dict(zip(names, one, strict=True)) for one in zip(keys, retrieval, ranking, rows, strict=True)], self.ranker.version
        )

    def described(self, positions: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Returns raw columns of items. Raises ValueError for a column that items do not have."""
        if unknown := [name for name in columns if name not in self.catalogue.raw.column_names]:
            raise ValueError(f"columns: items have no {unknown[0]!r}, only {', '.join(self.catalogue.raw.column_names)}")
        if not columns:
            return [{} for _ in positions]
        return [
            {name: _plain(value) for name, value in row.items()} for row in self.catalogue.items(positions, columns).to_pylist()
        ]

    def score_items(self, user: dict[str, Any], items: list[int | str]) -> RowScores | Refused:
        """Returns the scores of items for a user."""
        try:
            wanted = int if pa.types.is_integer(self.catalogue.lookup.values.type) else str
            keys = [key if isinstance(key, wanted) else None for key in items]
            users = raw_table([user], self.wanted)
            scores = rank_items(self.ranker, self.catalogue, users, self.catalogue.positions(keys)[None])[0]
            return RowScores([_number(score) for score in scores.tolist()], [], self.ranker.version)
        except ValueError as error:
            return Refused(str(error))

    def score_rows(self, rows: list[dict[str, Any]]) -> RowScores | Refused:
        """Returns the scores of whole rows of raw columns."""
        try:
            features = self.ranker.schema.features
            ignored = dict.fromkeys(name for row in rows for name in row if name not in {column.name for column in features})
            scores = self.ranker.predict(raw_table(rows, features))
            return RowScores([_number(score) for score in scores.tolist()], list(ignored), self.ranker.version)
        except ValueError as error:
            return Refused(str(error))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Returns a value that JSON has."""
    match value:
        case list():
            return [_plain(one) for one in value]
        case float():
            return _number(value)
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)
