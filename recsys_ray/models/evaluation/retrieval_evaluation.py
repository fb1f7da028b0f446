"""Evaluation of a retrieval model: every user of a split against the whole catalogue, over all workers, beside baselines.

Items of earlier splits are never recommended again. Each worker embeds its share of the catalogue and ranks for its share of the
users.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from recsys_ray.distributed import all_gather_equal, broadcast_from_rank_0, get_rank, get_world_size
from recsys_ray.models.encoded_catalogue import EncodedCatalogue
from recsys_ray.models.evaluation.baselines import solve_ials, train_ials
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, Ranked, rank_catalogue
from recsys_ray.models.evaluation.retrieval_users import EarlierPairs, InteractionReader, UserQueries
from recsys_ray.models.task import Evaluation, SplitReader
from recsys_ray.models.two_tower_batch import candidate_batch, embed_queries
from recsys_ray.schema import Schema

EARLIER = {"validation": ("train",), "test": ("train", "validation")}
EMBEDDED_AT_ONCE = 4096
OURS = "Two Tower"


class Vectors(NamedTuple):
    """The vectors of U users and N items, float32, whose dot products are scores."""

    users: torch.Tensor
    items: torch.Tensor


class EvaluatedUsers(NamedTuple):
    """The users that a ranking is measured for, what they have seen, and their groups where metrics are wanted by group."""

    users: UserQueries
    seen: Pairs
    groups: torch.Tensor | None


class RetrievalEvaluator:
    """Evaluates a retrieval model on a split.

    It keeps what earlier splits hold of a split's users after it has read them once.
    """

    def __init__(
        self,
        schema: Schema,
        catalogue: EncodedCatalogue,
        *,
        metrics_at: tuple[int, ...],
        group_by: str = "",
        group_names: tuple[str, ...] = (),
        ials: bool = False,
    ) -> None:
        """`group_names` says what the table rows of the column `group_by` stand for; `ials` adds iALS to the baselines."""
        self._schema, self._catalogue, self._metrics_at = schema, catalogue, metrics_at
        self._group_by, self._group_names, self._ials = group_by, group_names, ials
        self._interactions = InteractionReader(schema, group_by, catalogue.position_of_row())
        self._earlier: dict[str, EarlierPairs] = {}

    def __call__(self, model: Any, split: str, read: SplitReader, device: torch.device) -> Evaluation | None:
        """Returns None where the split has no positive rows, and on every worker but rank 0."""
        stream = read(split)
        if stream is None:
            return None
        model.eval()
        with torch.no_grad():
            users = self._interactions.users(
                lambda columns: embed_queries(self._schema, model.module, columns, device), stream, device
            )
            found = self._evaluation(model.module.model, users, split, read, device=device) if len(users) else None
        model.train()
        return found if get_rank() == 0 else None

    def _evaluation(self, model: Any, users: UserQueries, split: str, read: SplitReader, *, device: torch.device) -> Evaluation:
        if split not in self._earlier:
            stream = chain.from_iterable(read(name) or () for name in EARLIER[split])
            self._earlier[split] = self._interactions.earlier(users, stream, device)
        earlier = self._earlier[split]
        vectors = {OURS: Vectors(users.vectors, embed_catalogue(model, self._schema, self._catalogue, device))}
        if split == "test":
            vectors |= self._baselines(users, earlier.liked, read, device)
        rows: list[dict[str, Any]] = []
        for name, pair in vectors.items():
            groups = users.groups if name == OURS and split == "test" and self._group_by else None
            rows += self._measured(name, pair, EvaluatedUsers(users, earlier.seen, groups), device)
        return Evaluation(rows[0]["metrics"], comparison=rows)

    def _baselines(self, users: UserQueries, liked: Pairs, read: SplitReader, device: torch.device) -> dict[str, Vectors]:
        found = {"popularity": Vectors(torch.ones(len(users), 1), self._catalogue.frequency.unsqueeze(1))}
        if self._ials:
            user = self._schema.key("user")
            assert user is not None
            pairs = self._interactions.positive_pairs(read("train") or (), device)
            items = broadcast_from_rank_0(lambda: train_ials(pairs, user.num_embeddings, len(self._catalogue)), device)
            found["iALS"] = Vectors(solve_ials(liked, len(users), items), items)
        return found

    def _measured(self, name: str, vectors: Vectors, to_rank: EvaluatedUsers, device: torch.device) -> list[dict[str, Any]]:
        """Returns metrics over all users, then by group; this worker ranks for every `world_size`-th user."""
        users, seen, groups = to_rank
        relevant, missing = self._interactions.relevant(users, seen, len(self._catalogue))
        mine = torch.arange(get_rank(), len(users), get_world_size())
        queries, candidates = vectors.users[mine].to(device), vectors.items.to(device)
        ranked = rank_catalogue(
            partial(_scores, queries, candidates),
            relevant=_pairs_of(relevant, mine, len(users)).to(device),
            missing=missing[mine].to(device),
            seen=_pairs_of(seen, mine, len(users)).to(device),
            num_items=len(self._catalogue),
            metrics_at=self._metrics_at,
        )
        chose = (torch.bincount(relevant.users, minlength=len(users)) + missing) > 0
        found = [{"name": name, "metrics": _mean(ranked, chose[mine], device) | _coverage(ranked)}]
        for group in [] if groups is None else groups.unique().tolist():
            members = chose & (groups == group)
            found.append({"name": f"{name}, {self._group_label(group)}", "metrics": _mean(ranked, members[mine], device)})
        return found

    def _group_label(self, row: int) -> str:
        names = self._group_names
        return f"{self._group_by} {names[row] if row < len(names) else row}"


def embed_catalogue(model: Any, schema: Schema, catalogue: EncodedCatalogue, device: torch.device) -> torch.Tensor:
    """Returns the vectors of all items, float32 [N, embedding_dim], on every worker; each worker embeds its share."""
    share = -(-len(catalogue) // get_world_size())
    positions = (torch.arange(share) * get_world_size() + get_rank()).clamp(max=len(catalogue) - 1)
    parts = [
        model.embed_candidate(candidate_batch(schema, catalogue.take(chunk)).to(device))
        for chunk in positions.split(EMBEDDED_AT_ONCE)
    ]
    by_worker = all_gather_equal(torch.cat(parts)).view(get_world_size(), share, -1)
    return by_worker.transpose(0, 1).reshape(share * get_world_size(), -1)[: len(catalogue)].cpu()


def _scores(queries: torch.Tensor, candidates: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    return queries[first:stop] @ candidates.T


def _pairs_of(pairs: Pairs, users: torch.Tensor, count: int) -> Pairs:
    """Returns the pairs of these users alone, each user renumbered by its position among them."""
    position = torch.full((count,), -1)
    position[users] = torch.arange(len(users))
    kept = position[pairs.users] >= 0
    return Pairs(position[pairs.users[kept]], pairs.items[kept])


def _mean(ranked: Ranked, counted: torch.Tensor, device: torch.device) -> dict[str, float]:
    """Returns the mean metrics over the `counted` users of all workers, and how many they are."""
    counted = counted.to(device)
    sums = torch.stack([counted.sum().double(), *(values[counted].sum() for values in ranked.metrics.values())])
    if get_world_size() > 1:
        dist.all_reduce(sums)
    means = {name: float(total / sums[0]) for name, total in zip(ranked.metrics, sums[1:], strict=True)}
    return means | {"users": float(sums[0])}


def _coverage(ranked: Ranked) -> dict[str, float]:
    """Returns coverage@k, the share of the catalogue that is among any user's first k."""
    found = {}
    for k, recommended in ranked.recommended.items():
        anyone = recommended.double()
        if get_world_size() > 1:
            dist.all_reduce(anyone, dist.ReduceOp.MAX)
        found[f"coverage_at_{k}"] = float(anyone.mean())
    return found
