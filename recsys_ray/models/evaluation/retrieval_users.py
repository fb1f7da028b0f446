"""Users of a split and their interactions, gathered from all workers: whom to rank for, and what they interacted with before.

Every user is one query, with the features of the user's earliest row in the split. A user that training has not seen has no id in
the table, so each such row counts as a user of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.distributed import all_gather_rows, get_rank
from recsys_ray.models.evaluation.retrieval_metrics import Pairs
from recsys_ray.schema import Schema

NO_ID = 1 << 40


class Interactions(NamedTuple):
    """User and item of each row (int64 table rows), and whether it counts, and counts and is positive (bool); all [rows]."""

    users: torch.Tensor
    items: torch.Tensor
    counted: torch.Tensor
    positive: torch.Tensor


class EarlierPairs(NamedTuple):
    """Pairs of a split's users with items of earlier splits: all items that they have seen, and those that they liked."""

    seen: Pairs
    liked: Pairs


@dataclass(frozen=True)
class UserQueries:
    """U users of a split, the same on every worker, ordered by id."""

    ids: torch.Tensor
    """int64 [U]: the user key's table row, or a negative number for a user without one."""
    vectors: torch.Tensor
    groups: torch.Tensor
    """int64 [U]: table row of the column that users are grouped by."""
    choices: torch.Tensor
    """int64 [P, 2]: user id, and table row of the item key, of every positive row."""

    def __len__(self) -> int:
        return len(self.ids)

    def positions_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the position of each id among the users; -1 for an id that is not among them."""
        found = torch.searchsorted(self.ids, ids.contiguous()).clamp(max=len(self) - 1)
        return torch.where(self.ids[found] == ids, found, -1)


@dataclass(frozen=True)
class InteractionReader:
    """Reads users and items out of the columns of a stream."""

    schema: Schema
    group_by: str
    positions: torch.Tensor
    """int64 [rows of the item key's table]: position in the catalogue, or -1."""

    def read(self, columns: Columns) -> Interactions:
        """Returns user and item of every row, and which rows count."""
        user, item, label = self.schema.key("user"), self.schema.key("item"), self.schema.label
        assert user is not None and item is not None
        counted = columns[ROW_WEIGHT] > 0
        positive = counted & (columns[label.name] > 0) if label is not None else counted
        return Interactions(columns[user.name].long(), columns[item.name].long(), counted, positive)

    def users(
        self, embed_query: Callable[[Columns], torch.Tensor], stream: Iterable[Columns], device: torch.device
    ) -> UserQueries:
        """Returns the users that have a positive row, with the query vectors of their rows. Every worker calls it."""
        parts = [self._queries(embed_query(columns).cpu(), columns) for columns in stream]
        rows, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
        unknown = rows[:, 0] == 0
        rows[unknown, 0] = -1 - torch.arange(int(unknown.sum())) - NO_ID * get_rank()
        first = _earliest(rows)
        choices, rows, vectors = (all_gather_rows(part, device) for part in (rows[:, [0, 2]], rows[first], vectors[first]))
        first = _earliest(rows)
        return UserQueries(rows[first, 0].contiguous(), vectors[first], rows[first, 3], choices)

    def _queries(self, vectors: torch.Tensor, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns, of the positive rows, user, time, item and group as int64 [rows, 4], and query vectors."""
        users, items, _, positive = self.read(columns)
        time = columns[self.schema.timestamp.name] if self.schema.timestamp else torch.zeros_like(users)
        group = columns[self.group_by].long() if self.group_by else torch.zeros_like(users)
        return torch.stack([users, time, items, group], dim=1)[positive], vectors[positive]

    def earlier(self, users: UserQueries, stream: Iterable[Columns], device: torch.device) -> EarlierPairs:
        """Returns all pairs of these users and catalogue items in the stream, and the positive ones among them."""
        parts = [torch.zeros(0, 3, dtype=torch.int64)]
        for columns in stream:
            ids, items, counted, positive = self.read(columns)
            places, positions = users.positions_of(ids), self.positions[items]
            kept = counted & (ids > 0) & (places >= 0) & (positions >= 0)
            parts.append(torch.stack([places, positions, positive.long()], dim=1)[kept])
        pairs = all_gather_rows(torch.cat(parts), device)
        return EarlierPairs(Pairs.of(pairs[:, 0], pairs[:, 1]), Pairs.of(*pairs[pairs[:, 2] > 0, :2].T))

    def positive_pairs(self, stream: Iterable[Columns], device: torch.device) -> Pairs:
        """Returns all positive pairs of users, by table row, and catalogue items, by position."""
        parts = [torch.zeros(0, 2, dtype=torch.int64)]
        for columns in stream:
            ids, items, _, positive = self.read(columns)
            kept = positive & (ids > 0) & (self.positions[items] >= 0)
            parts.append(torch.stack([ids, self.positions[items]], dim=1)[kept])
        return Pairs.of(*all_gather_rows(torch.cat(parts), device).T)

    def relevant(self, users: UserQueries, seen: Pairs, num_items: int) -> tuple[Pairs, torch.Tensor]:
        """Returns what the users chose of the catalogue and had not seen before, and how many choices of each are not in it."""
        places, positions = users.positions_of(users.choices[:, 0]), self.positions[users.choices[:, 1]]
        there = positions >= 0
        missing = torch.bincount(places[~there], minlength=len(users))
        return Pairs.of(places[there], positions[there]).without(seen, num_items), missing


def _earliest(rows: torch.Tensor) -> torch.Tensor:
    """Returns the position of each user's earliest row; among rows of one moment, that of the smallest item."""
    order = torch.arange(len(rows))
    for column in (2, 1, 0):
        order = order[torch.argsort(rows[order, column], stable=True)]
    users = rows[order, 0]
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = users[1:] != users[:-1]
    return order[first]
