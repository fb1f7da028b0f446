"""Evaluation of a retrieval model: every user of a split against the whole catalogue, over all workers, beside baselines.

Items of earlier splits are never recommended again. Each worker embeds its share of the catalogue and ranks for its share of the
users.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.config import TwoTowerConfig
from recsys_ray.models.collectives import from_rank_0, gather_equal, my_rank, workers
from recsys_ray.models.encoded_catalogue import Catalogue
from recsys_ray.models.evaluation.baselines import fit_ials, solve
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, Ranked, rank
from recsys_ray.models.evaluation.retrieval_users import Choices, Users
from recsys_ray.models.task import Evaluation, Read
from recsys_ray.models.two_tower_batch import candidate_batch
from recsys_ray.schema import Schema

EARLIER = {"validation": ("train",), "test": ("train", "validation")}
EMBED_ROWS = 4096
OURS = "Two Tower"
Vectors = tuple[torch.Tensor, torch.Tensor]
"""Of the users [U, D] and of the catalogue [N, D]."""


class RetrievalEvaluator:
    """`evaluate` of a Two Tower's Task. Keeps what earlier splits hold of a split's users after it has read them once."""

    def __init__(self, config: TwoTowerConfig, schema: Schema, row_weight: str, catalogue: Catalogue) -> None:
        self._config, self._schema, self._catalogue = config, schema, catalogue
        self._choices = Choices(schema, row_weight, config.group_by, catalogue.position_of_row())
        self._earlier: dict[str, tuple[Pairs, Pairs]] = {}

    def __call__(self, model: Any, split: str, read: Read, device: torch.device) -> Evaluation | None:
        """None where the split has no positive rows, and on every worker but rank 0."""
        stream = read(split)
        if stream is None:
            return None
        model.eval()
        with torch.no_grad():
            users = self._choices.users(model.module.model, stream, device)
            found = self._evaluation(model.module.model, users, split, read, device) if len(users) else None
        model.train()
        return found if my_rank() == 0 else None

    def _evaluation(self, model: Any, users: Users, split: str, read: Read, device: torch.device) -> Evaluation:
        if split not in self._earlier:
            earlier = chain.from_iterable(read(name) or () for name in EARLIER[split])
            self._earlier[split] = self._choices.earlier(users, earlier, device)
        seen, liked = self._earlier[split]
        vectors = {OURS: (users.vectors, embed_catalogue(model, self._schema, self._catalogue, device))}
        if split == "test":
            vectors |= self._baselines(users, liked, read, device)
        rows = [row for name, pair in vectors.items() for row in self._measured(name, users, seen, pair, split, device)]
        return Evaluation(rows[0]["metrics"], comparison=rows)

    def _baselines(self, users: Users, liked: Pairs, read: Read, device: torch.device) -> dict[str, Vectors]:
        found = {"popularity": (torch.ones(len(users), 1), self._catalogue.frequency.unsqueeze(1))}
        if self._config.ials:
            user = self._schema.key("user")
            assert user is not None
            pairs = self._choices.pairs(read("train") or (), device)
            factors = from_rank_0(lambda: fit_ials(pairs, user.num_embeddings, len(self._catalogue)), device)
            found["iALS"] = (solve(liked, len(users), factors), factors)
        return found

    def _measured(
        self, name: str, users: Users, seen: Pairs, vectors: Vectors, split: str, device: torch.device
    ) -> list[dict[str, Any]]:
        """Metrics over all users, then where asked for by group: this worker ranks for every `workers`-th user."""
        relevant, missing = self._choices.relevant(users, seen, len(self._catalogue))
        mine = torch.arange(my_rank(), len(users), workers())
        queries, candidates = (part.to(device) for part in (vectors[0][mine], vectors[1]))
        own, known = (_of_users(pairs, mine, len(users)).to(device) for pairs in (relevant, seen))
        score = partial(_scores, queries, candidates)
        ranked = rank(score, own, missing[mine].to(device), known, len(self._catalogue), self._config.metrics_at)
        asked = (torch.bincount(relevant.users, minlength=len(users)) + missing) > 0
        found = [{"name": name, "metrics": _mean(ranked, asked[mine], device) | _coverage(ranked)}]
        if self._config.group_by and split == "test" and name == OURS:
            for group in users.groups.unique().tolist():
                whom = asked & (users.groups == group)
                found.append({"name": f"{name}, {self._group(group)}", "metrics": _mean(ranked, whom[mine], device)})
        return found

    def _group(self, row: int) -> str:
        names = self._catalogue.group_names
        return f"{self._config.group_by} {names[row] if row < len(names) else row}"


def embed_catalogue(model: Any, schema: Schema, catalogue: Catalogue, device: torch.device) -> torch.Tensor:
    """float32 [N, embedding_dim], on every worker, each of which embeds its share."""
    share = -(-len(catalogue) // workers())
    positions = (torch.arange(share) * workers() + my_rank()).clamp(max=len(catalogue) - 1)
    parts = [
        model.embed_candidate(candidate_batch(schema, catalogue.take(chunk)).to(device)) for chunk in positions.split(EMBED_ROWS)
    ]
    by_worker = gather_equal(torch.cat(parts)).view(workers(), share, -1)
    return by_worker.transpose(0, 1).reshape(share * workers(), -1)[: len(catalogue)].cpu()


def _scores(queries: torch.Tensor, candidates: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    return queries[first:stop] @ candidates.T


def _of_users(pairs: Pairs, users: torch.Tensor, count: int) -> Pairs:
    """Pairs of these users alone, counted by their place among them."""
    place = torch.full((count,), -1)
    place[users] = torch.arange(len(users))
    kept = place[pairs.users] >= 0
    return Pairs(place[pairs.users[kept]], pairs.items[kept])


def _mean(ranked: Ranked, counted: torch.Tensor, device: torch.device) -> dict[str, float]:
    """Over the `counted` users of all workers, and how many they are."""
    counted = counted.to(device)
    sums = torch.stack([counted.sum().double(), *(values[counted].sum() for values in ranked.metrics.values())])
    if workers() > 1:
        dist.all_reduce(sums)
    means = {name: float(total / sums[0]) for name, total in zip(ranked.metrics, sums[1:], strict=True)}
    return means | {"users": float(sums[0])}


def _coverage(ranked: Ranked) -> dict[str, float]:
    """coverage@k: the share of the catalogue that is among any user's first k."""
    found = {}
    for k, recommended in ranked.recommended.items():
        anyone = recommended.double()
        if workers() > 1:
            dist.all_reduce(anyone, dist.ReduceOp.MAX)
        found[f"coverage_at_{k}"] = float(anyone.mean())
    return found
