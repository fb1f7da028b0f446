"""The measurement of a retrieval model on the test split: recall, NDCG and hit rate of every user, over the whole catalogue.

As in training's own evaluation, items of earlier splits are not recommended again, and popularity is the trivial model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.data.catalogue_reader import load_encoded_catalogue
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.models.encoded_catalogue import EncodedCatalogue
from recsys_ray.models.evaluation.retrieval_metrics import Pairs, rank_catalogue
from recsys_ray.models.evaluation.retrieval_users import InteractionReader, UserQueries
from recsys_ray.schema import QUERY_SIDES
from recsys_ray.serving.promotion.measurement import Measurement, per_unit_mean
from recsys_ray.serving.promotion.row_mapping import RowMapping
from recsys_ray.serving.retriever import Retriever

CPU = torch.device("cpu")
EARLIER_SPLITS = ("train", "validation")
ITEMS_AT_ONCE = 4096
ScoresOfUsers = Callable[[int, int], torch.Tensor]
"""The scores of the users from `first` to `stop` - 1, float32 [stop - first, items]."""


@dataclass(frozen=True)
class RankedUsers:
    """The test users, how a model scores the catalogue for each, and how popular its items are."""

    scores: ScoresOfUsers
    popularity: torch.Tensor
    relevant: Pairs
    missing: torch.Tensor
    seen: Pairs
    cutoff: int
    """The k of the metrics at k."""

    def measurement(self) -> Measurement:
        """Returns the model's metrics as a function of how often each user counts."""
        return self._measured(self.scores)

    def constant(self) -> Measurement:
        """Returns the measurement of the trivial model, which recommends what is popular to everybody."""
        return self._measured(lambda first, stop: self.popularity.repeat(stop - first, 1))

    def _measured(self, scores: ScoresOfUsers) -> Measurement:
        ranked = rank_catalogue(
            scores,
            relevant=self.relevant,
            missing=self.missing,
            seen=self.seen,
            num_items=len(self.popularity),
            metrics_at=(self.cutoff,),
        )
        chosen = torch.bincount(self.relevant.users, minlength=len(self.missing)) + self.missing
        values = {name: each[chosen > 0].numpy() for name, each in ranked.metrics.items()}
        return per_unit_mean(values, "users", int(chosen.sum()))


def rank_users(retriever: Retriever, dataset: DatasetDirectory, cutoff: int) -> RankedUsers:
    """Embeds the catalogue and every user of the test split. Raises ValueError where the split has no positive row."""
    catalogue = encoded_catalogue(dataset)
    queries = retriever.schema.features_of(*QUERY_SIDES)
    mapping = RowMapping.of(dataset, retriever.encoder, queries)
    reader = InteractionReader(dataset.schema, "", catalogue.position_of_row())

    def embed_query(columns: Columns) -> torch.Tensor:
        return torch.from_numpy(retriever.embed_encoded_queries(mapping(columns)))

    if dataset.split("test") is None:
        raise ValueError(f"{dataset.root} has no test split to compare models on")
    users = reader.users(embed_query, weighted(dataset, "test"), CPU)
    if not len(users):
        raise ValueError(f"the test split of {dataset.root} has no positive row to compare models on")
    seen = reader.earlier(users, chain.from_iterable(weighted(dataset, split) for split in EARLIER_SPLITS), CPU).seen
    relevant, missing = reader.relevant(users, seen, len(catalogue))
    scores = dot_products(users, embed_items(retriever, load_catalogue(dataset)))
    return RankedUsers(scores, catalogue.frequency, relevant, missing, seen, cutoff)


def encoded_catalogue(dataset: DatasetDirectory) -> EncodedCatalogue:
    """Returns the items of a dataset. Raises ValueError where the schema does not tell users and items apart."""
    key = dataset.schema.key("item")
    if key is None or dataset.schema.key("user") is None:
        raise ValueError(f"the schema of {dataset.root} does not mark user and item keys, which retrieval is measured by")
    return EncodedCatalogue(*load_encoded_catalogue(dataset), key)


def weighted(dataset: DatasetDirectory, split: str) -> Iterator[Columns]:
    """Yields the blocks of a split with ROW_WEIGHT, as a stream of training does."""
    schema = dataset.schema
    for columns in read_split(dataset, split):
        user = schema.key("user")
        assert user is not None
        weights = columns[schema.weight.name] if schema.weight else torch.ones(len(columns[user.name]))
        yield {**columns, ROW_WEIGHT: weights}


def embed_items(retriever: Retriever, catalogue: pa.Table) -> torch.Tensor:
    """Returns the vectors of all items, float32 [items, dim]."""
    starts = range(0, len(catalogue), ITEMS_AT_ONCE)
    return torch.from_numpy(np.concatenate([retriever.embed_candidates(catalogue.slice(one, ITEMS_AT_ONCE)) for one in starts]))


def dot_products(users: UserQueries, items: torch.Tensor) -> ScoresOfUsers:
    """Returns the scores of all items for a range of users."""
    return lambda first, stop: users.vectors[first:stop] @ items.T
