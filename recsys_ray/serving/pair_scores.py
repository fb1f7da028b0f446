"""Scores pairs of a user and an item of which each was looked up once, for any ranking model that can be split."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from recsys_ray.models.task import SplitRanker
from recsys_ray.schema import QUERY_SIDES, Schema


class SideFeatures(NamedTuple):
    """Rows of users, or of items, as the dense part of a ranking model reads them."""

    dense: torch.Tensor
    """float32 [rows, the side's dense columns]."""
    embeddings: torch.Tensor
    """float32 [rows, the side's categorical columns, dim], pooled, in the order of `SplitRanker.features`."""


class _Run(NamedTuple):
    """Columns of one side that follow each other in the schema, by their positions among those of the side."""

    of_query: bool
    start: int
    stop: int


class SideColumns(NamedTuple):
    """The positions of one side's columns among all of a model's."""

    dense: list[int]
    categorical: list[int]

    def of(self, dense: torch.Tensor, embeddings: torch.Tensor) -> SideFeatures:
        """Returns the side's features of rows that have all columns."""
        return SideFeatures(dense[:, self.dense], embeddings[:, self.categorical])


class PairScores(nn.Module):
    """The dense part of a ranking model, which puts the columns of a user and an item in the order that it reads them in."""

    def __init__(self, split: SplitRanker, schema: Schema) -> None:
        super().__init__()
        self.scores = split.dense
        side_of = {column.name: column.side for column in schema.categorical}
        dense = [column.side in QUERY_SIDES for column in schema.dense]
        categorical = [side_of[name] in QUERY_SIDES for name in split.features]
        self.user_columns = SideColumns(_places(dense, True), _places(categorical, True))
        self.item_columns = SideColumns(_places(dense, False), _places(categorical, False))
        self._dense, self._categorical = _runs(dense), _runs(categorical)

    def forward(self, users: SideFeatures, items: SideFeatures, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Returns the scores [B] of pairs; `user` and `item`, int64 [B], are rows of `users` and of `items`."""
        theirs = SideFeatures(*(values.index_select(0, user) for values in users))
        its = SideFeatures(*(values.index_select(0, item) for values in items))
        embeddings = _joined(self._categorical, theirs.embeddings, its.embeddings)
        if not self._dense:  # a model without dense columns is trained with one of zeros
            return self.scores(torch.zeros_like(embeddings[:, 0, :1]), embeddings)
        return self.scores(_joined(self._dense, theirs.dense, its.dense), embeddings)


def _places(of_query: list[bool], wanted: bool) -> list[int]:
    return [place for place, one in enumerate(of_query) if one == wanted]


def _runs(of_query: Iterable[bool]) -> tuple[_Run, ...]:
    """Returns runs of columns, given the side of each."""
    found, places = [], {True: 0, False: 0}
    for side, columns in groupby(of_query):
        start = places[side]
        places[side] += len(list(columns))
        found.append(_Run(side, start, places[side]))
    return tuple(found)


def _joined(runs: tuple[_Run, ...], of_user: torch.Tensor, of_item: torch.Tensor) -> torch.Tensor:
    return torch.cat([(of_user if run.of_query else of_item)[:, run.start : run.stop] for run in runs], dim=1)
