"""Evaluation of a retrieval model: the users of a split, the whole catalogue, and what each of them chose, over all workers.

Every user is one query, by the features of the earliest row in the split; items of earlier splits are never recommended again. A
user whom training has not seen is known by no id, so each such row is a user of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.config import TwoTowerConfig
from recsys_ray.models.baselines import fit_ials, solve
from recsys_ray.models.catalogue import Catalogue
from recsys_ray.models.collectives import gather_equal, gather_rows, workers
from recsys_ray.models.ranking import Pairs, Ranked, rank
from recsys_ray.models.task import Columns, Evaluation, Read
from recsys_ray.models.two_tower_batch import candidate_batch, query_batch
from recsys_ray.schema import Schema

EARLIER = {"validation": ("train",), "test": ("train", "validation")}
EMBED_ROWS = 4096
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

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Of these ids among the users; -1 where not there."""
        found = torch.searchsorted(self.ids, ids.contiguous()).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[found] == ids, found, -1)


class RetrievalEvaluator:
    """`evaluate` of a Two Tower's Task. Keeps what earlier splits hold of a split's users after it has read them once."""

    def __init__(self, config: TwoTowerConfig, schema: Schema, row_weight: str, catalogue: Catalogue) -> None:
        self._config, self._schema, self._row_weight, self._catalogue = config, schema, row_weight, catalogue
        self._positions = catalogue.position_of_row()
        self._earlier: dict[str, tuple[Pairs, Pairs]] = {}

    def __call__(self, model: Any, split: str, read: Read, device: torch.device) -> Evaluation | None:
        """None where the split has no positive rows, and on every worker but rank 0."""
        columns = read(split)
        if columns is None:
            return None
        model.eval()
        with torch.no_grad():
            users = self._users(model.module.model, columns, device)
            found = self._evaluation(model.module.model, users, split, read, device) if len(users.ids) else None
        model.train()
        return found if _rank() == 0 else None

    def _evaluation(self, model: Any, users: Users, split: str, read: Read, device: torch.device) -> Evaluation:
        if split not in self._earlier:
            self._earlier[split] = self._read_earlier(users, split, read, device)
        seen, liked = self._earlier[split]
        vectors = {"Two Tower": (users.vectors, embed_catalogue(model, self._schema, self._catalogue, device))}
        if split == "test":
            vectors |= self._baselines(users, liked, read, device)
        rows = [
            row
            for name, (queries, candidates) in vectors.items()
            for row in self._measured(name, users, seen, queries.to(device), candidates.to(device), split)
        ]
        return Evaluation(rows[0]["metrics"], comparison=rows)

    def _users(self, model: Any, columns: Iterable[Columns], device: torch.device) -> Users:
        parts = [self._queries(model, batch, device) for batch in columns]
        rows, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
        unknown = rows[:, 0] == 0
        rows[unknown, 0] = -1 - torch.arange(int(unknown.sum())) - NO_ID * _rank()
        first = _earliest(rows)
        rows_first, choices = gather_rows(rows[first], device), gather_rows(rows[:, [0, 2]], device)
        vectors = gather_rows(vectors[first], device)
        first = _earliest(rows_first)
        return Users(rows_first[first, 0].contiguous(), vectors[first], rows_first[first, 3], choices)

    def _queries(self, model: Any, columns: Columns, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the positive rows: int64 [rows, 4] of user, time, item and group, and query vectors."""
        vectors = model.embed_query(query_batch(self._schema, columns).to(device)).cpu()
        users, items, counted = self._rows(columns)
        time = columns[self._schema.timestamp.name] if self._schema.timestamp else torch.zeros_like(users)
        group = columns[self._config.group_by].long() if self._config.group_by else torch.zeros_like(users)
        return torch.stack([users, time, items, group], dim=1)[counted], vectors[counted]

    def _rows(self, columns: Columns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each row: user and item by table row, and whether it is a positive one."""
        user, item, label = self._schema.key("user"), self._schema.key("item"), self._schema.label
        assert user is not None and item is not None
        counted = columns[self._row_weight] > 0
        if label is not None:
            counted &= columns[label.name] > 0
        return columns[user.name].long(), columns[item.name].long(), counted

    def _read_earlier(self, users: Users, split: str, read: Read, device: torch.device) -> tuple[Pairs, Pairs]:
        """What the users had to do with in earlier splits, and the positive part of it."""
        parts = [torch.zeros(0, 3, dtype=torch.int64)]
        for earlier in EARLIER[split]:
            for columns in read(earlier) or ():
                ids, items, positive = self._rows(columns)
                places, positions = users.places(ids), self._positions[items]
                kept = (places >= 0) & (positions >= 0) & (ids > 0) & (columns[self._row_weight] > 0)
                parts.append(torch.stack([places, positions, positive.long()], dim=1)[kept])
        pairs = gather_rows(torch.cat(parts), device)
        return Pairs.of(pairs[:, 0], pairs[:, 1]), Pairs.of(*pairs[pairs[:, 2] > 0, :2].T)

    def _baselines(
        self, users: Users, liked: Pairs, read: Read, device: torch.device
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {"popularity": (torch.ones(len(users.ids), 1), self._catalogue.frequency.unsqueeze(1))}
        if self._config.ials:
            factors = self._ials(read, device)
            found["iALS"] = (solve(liked, len(users.ids), factors), factors)
        return found

    def _ials(self, read: Read, device: torch.device) -> torch.Tensor:
        parts = [torch.zeros(0, 2, dtype=torch.int64)]
        for columns in read("train") or ():
            ids, items, positive = self._rows(columns)
            kept = positive & (ids > 0) & (self._positions[items] >= 0)
            parts.append(torch.stack([ids, self._positions[items]], dim=1)[kept])
        pairs = Pairs.of(*gather_rows(torch.cat(parts), device).T)
        user = self._schema.key("user")
        assert user is not None
        factors = fit_ials(pairs, user.num_embeddings, len(self._catalogue)) if _rank() == 0 else None
        return _from_rank_0(factors, device)

    def _measured(
        self, name: str, users: Users, seen: Pairs, queries: torch.Tensor, candidates: torch.Tensor, split: str
    ) -> list[dict[str, Any]]:
        """Metrics over all users, then where asked for by group: this worker ranks every `workers`-th user."""
        relevant, missing = self._relevant(users, seen)
        mine = torch.arange(_rank(), len(users.ids), workers())
        score = partial(_scores, queries[mine], candidates)
        here = queries.device
        ranked = rank(
            score,
            _of_users(relevant, mine, len(users.ids)).to(here),
            missing[mine].to(here),
            _of_users(seen, mine, len(users.ids)).to(here),
            len(self._catalogue),
            self._config.metrics_at,
        )
        asked = (torch.bincount(relevant.users, minlength=len(users.ids)) + missing) > 0
        everyone = [(name, torch.ones(len(users.ids), dtype=torch.bool))]
        if self._config.group_by and split == "test" and name == "Two Tower":
            everyone += [(f"{name}, {self._group(row)}", users.groups == row) for row in users.groups.unique().tolist()]
        return [
            {"name": label, "metrics": _mean(ranked, (whom & asked)[mine], here, whole=place == 0)}
            for place, (label, whom) in enumerate(everyone)
        ]

    def _relevant(self, users: Users, seen: Pairs) -> tuple[Pairs, torch.Tensor]:
        """Choices in the catalogue that are not seen before, and how many of each user's are not in it."""
        places, positions = users.places(users.choices[:, 0]), self._positions[users.choices[:, 1]]
        there = positions >= 0
        missing = torch.bincount(places[~there], minlength=len(users.ids))
        return Pairs.of(places[there], positions[there]).without(seen, len(self._catalogue)), missing

    def _group(self, row: int) -> str:
        names = self._catalogue.group_names
        return f"{self._config.group_by} {names[row] if row < len(names) else row}"


def embed_catalogue(model: Any, schema: Schema, catalogue: Catalogue, device: torch.device) -> torch.Tensor:
    """float32 [N, embedding_dim], on every worker, each of which embeds its share."""
    share = -(-len(catalogue) // workers())
    positions = (torch.arange(share) * workers() + _rank()).clamp(max=len(catalogue) - 1)
    parts = []
    for chunk in positions.split(EMBED_ROWS):
        parts.append(model.embed_candidate(candidate_batch(schema, catalogue.take(chunk)).to(device)))
    by_worker = gather_equal(torch.cat(parts)).view(workers(), share, -1)
    return by_worker.transpose(0, 1).reshape(share * workers(), -1)[: len(catalogue)].cpu()


def _scores(queries: torch.Tensor, candidates: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    return queries[first:stop] @ candidates.T


def _earliest(rows: torch.Tensor) -> torch.Tensor:
    """Of each user the place of the earliest row; of rows at one moment that of the smallest item."""
    order = torch.arange(len(rows))
    for column in (2, 1, 0):
        order = order[torch.argsort(rows[order, column], stable=True)]
    users = rows[order, 0]
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = users[1:] != users[:-1]
    return order[first]


def _of_users(pairs: Pairs, users: torch.Tensor, count: int) -> Pairs:
    """Pairs of these users alone, counted by their place among them."""
    place = torch.full((count,), -1)
    place[users] = torch.arange(len(users))
    kept = place[pairs.users] >= 0
    return Pairs(place[pairs.users[kept]], pairs.items[kept])


def _mean(ranked: Ranked, counted: torch.Tensor, device: torch.device, whole: bool) -> dict[str, float]:
    """Over the `counted` users of all workers; with coverage@k, the share of the catalogue recommended to anyone, if `whole`."""
    counted = counted.to(device)
    sums = torch.stack([counted.sum().double(), *(values[counted].sum() for values in ranked.metrics.values())])
    recommended = {f"coverage_at_{k}": found.double() for k, found in ranked.recommended.items()} if whole else {}
    if workers() > 1:
        dist.all_reduce(sums)
        for found in recommended.values():
            dist.all_reduce(found, dist.ReduceOp.MAX)
    metrics = {name: float(total / sums[0]) for name, total in zip(ranked.metrics, sums[1:], strict=True)}
    return metrics | {name: float(found.mean()) for name, found in recommended.items()} | {"users": float(sums[0])}


def _from_rank_0(factors: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    if workers() == 1:
        assert factors is not None
        return factors
    shape: list[Any] = [None if factors is None else factors.shape]
    dist.broadcast_object_list(shape, device=device)
    found = torch.empty(shape[0], device=device) if factors is None else factors.to(device)
    dist.broadcast(found, 0)
    return found.cpu()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
