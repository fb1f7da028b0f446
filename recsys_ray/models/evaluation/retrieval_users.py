"""Who chose what in a split, over all workers: the users to rank for, and what they had to do with before.

Every user is one query, by the features of the earliest row in the split. A user whom training has not seen is known by no id, so
each such row is a user of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from recsys_ray.columns import Columns
from recsys_ray.models.collectives import gather_rows, my_rank
from recsys_ray.models.evaluation.retrieval_metrics import Pairs
from recsys_ray.models.two_tower_batch import query_batch
from recsys_ray.schema import Schema

NO_ID = 1 << 40


@dataclass(frozen=True)
class Users:
    """U users of a split, on every worker alike, ordered by id."""

    ids: torch.Tensor
    """int64 [U]: table row of the user key, or negative for one without."""
    vectors: torch.Tensor
    groups: torch.Tensor
    """int64 [U]: table row of the column that users are grouped by."""
    choices: torch.Tensor
    """int64 [P, 2]: user id, and table row of the item key."""

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Of these ids among the users; -1 where not there."""
        found = torch.searchsorted(self.ids, ids.contiguous()).clamp(max=len(self) - 1)
        return torch.where(self.ids[found] == ids, found, -1)


@dataclass(frozen=True)
class Choices:
    """Reads users and items out of a stream's columns."""

    schema: Schema
    row_weight: str
    group_by: str
    positions: torch.Tensor
    """int64 [rows of the item key's table]: place in the catalogue, or -1."""

    def of(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each row: user and item by table row; whether it counts, and whether it counts and is a positive one."""
        user, item, label = self.schema.key("user"), self.schema.key("item"), self.schema.label
        assert user is not None and item is not None
        counted = columns[self.row_weight] > 0
        positive = counted & (columns[label.name] > 0) if label is not None else counted
        return columns[user.name].long(), columns[item.name].long(), counted, positive

    def users(self, model: Any, stream: Iterable[Columns], device: torch.device) -> Users:
        """Those with a positive row, and their queries."""
        parts = [self._queries(model, columns, device) for columns in stream]
        rows, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
        unknown = rows[:, 0] == 0
        rows[unknown, 0] = -1 - torch.arange(int(unknown.sum())) - NO_ID * my_rank()
        first = _earliest(rows)
        choices, rows, vectors = (gather_rows(part, device) for part in (rows[:, [0, 2]], rows[first], vectors[first]))
        first = _earliest(rows)
        return Users(rows[first, 0].contiguous(), vectors[first], rows[first, 3], choices)

    def _queries(self, model: Any, columns: Columns, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the positive rows: int64 [rows, 4] of user, time, item and group, and query vectors."""
        vectors = model.embed_query(query_batch(self.schema, columns).to(device)).cpu()
        users, items, _, positive = self.of(columns)
        time = columns[self.schema.timestamp.name] if self.schema.timestamp else torch.zeros_like(users)
        group = columns[self.group_by].long() if self.group_by else torch.zeros_like(users)
        return torch.stack([users, time, items, group], dim=1)[positive], vectors[positive]

    def earlier(self, users: Users, stream: Iterable[Columns], device: torch.device) -> tuple[Pairs, Pairs]:
        """All pairs of these users and catalogue items in the stream, and the positive ones among them."""
        parts = [torch.zeros(0, 3, dtype=torch.int64)]
        for columns in stream:
            ids, items, counted, positive = self.of(columns)
            places, positions = users.places(ids), self.positions[items]
            kept = counted & (ids > 0) & (places >= 0) & (positions >= 0)
            parts.append(torch.stack([places, positions, positive.long()], dim=1)[kept])
        pairs = gather_rows(torch.cat(parts), device)
        return Pairs.of(pairs[:, 0], pairs[:, 1]), Pairs.of(*pairs[pairs[:, 2] > 0, :2].T)

    def pairs(self, stream: Iterable[Columns], device: torch.device) -> Pairs:
        """All positive pairs of users, by table row, and catalogue items."""
        parts = [torch.zeros(0, 2, dtype=torch.int64)]
        for columns in stream:
            ids, items, _, positive = self.of(columns)
            kept = positive & (ids > 0) & (self.positions[items] >= 0)
            parts.append(torch.stack([ids, self.positions[items]], dim=1)[kept])
        return Pairs.of(*gather_rows(torch.cat(parts), device).T)

    def relevant(self, users: Users, seen: Pairs, catalogue: int) -> tuple[Pairs, torch.Tensor]:
        """What the users chose of the catalogue and had not seen before, and how many choices of each are not in it."""
        places, positions = users.places(users.choices[:, 0]), self.positions[users.choices[:, 1]]
        there = positions >= 0
        missing = torch.bincount(places[~there], minlength=len(users))
        return Pairs.of(places[there], positions[there]).without(seen, catalogue), missing


def _earliest(rows: torch.Tensor) -> torch.Tensor:
    """Of each user the place of the earliest row; of rows at one moment that of the smallest item."""
    order = torch.arange(len(rows))
    for column in (2, 1, 0):
        order = order[torch.argsort(rows[order, column], stable=True)]
    users = rows[order, 0]
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = users[1:] != users[:-1]
    return order[first]
