"""The plan of a job that recommends: the models and tables that its tasks open, and what the task of one bucket of users does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.host_memory import keep_freed_memory
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.batch.partitioned.output import BatchOutput, write_whole
from recsys_ray.serving.batch.recommending.batch_recommender import BatchRecommender, RecommendSizes
from recsys_ray.serving.batch.recommending.seen_items import InteractionColumns, with_history, with_seen
from recsys_ray.serving.batch.recommending.user_buckets import BucketedTable
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from recsys_ray.serving.retriever import Retriever

ITEMS_EMBEDDED_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class RecommenderFiles:
    """The files that a worker process loads once."""

    retriever: BatchModel
    ranker: BatchModel | None
    dataset: Path
    vectors: Path
    """The item vectors, a .npy file, which the processes of a machine share in memory."""
    request: RecommendSizes


@dataclass(frozen=True)
class UserHistory:
    """A list column that the models read, to be filled with the items that users saw last."""

    column: str
    length: int


@dataclass(frozen=True)
class RecommendPlan:
    """A job that recommends, divided into buckets of users."""

    files: RecommenderFiles
    users: BucketedTable
    interactions: tuple[BucketedTable, ...]
    columns: InteractionColumns
    history: UserHistory | None
    output: BatchOutput


def recommend_bucket(plan: RecommendPlan, bucket: int) -> None:
    """Recommends to the users of one bucket and writes the result. Called in a task."""
    recommender = loaded_recommender(plan.files)
    seen = [table.read(bucket).select(plan.columns.names) for table in plan.interactions]
    users = with_seen(plan.users.read(bucket), pa.concat_tables(seen) if seen else _no_interactions(plan.columns), plan.columns)
    if plan.history is not None:
        users = with_history(users, plan.history.column, plan.history.length)
    plan.output.write(bucket, recommender.recommend_all(users))


@lru_cache(1)
def loaded_recommender(files: RecommenderFiles) -> BatchRecommender:
    """Returns the recommender of this process, which is loaded once."""
    keep_freed_memory()
    retriever, ranker = files.retriever.load_retriever(), files.ranker.load_ranker() if files.ranker else None
    catalogue = ServedCatalogue.load(DatasetDirectory.open(files.dataset), retriever.item_key, ranker)
    kept = catalogue.raw.select([retriever.item_key, *files.request.item_columns])
    recommender = Recommender(retriever, ranker, dataclasses.replace(catalogue, raw=kept))
    # Mode c maps the file as mode r does, but PyTorch warns of tensors that cannot be written.
    vectors = torch.from_numpy(np.load(files.vectors, mmap_mode="c")).to(retriever.device)
    return BatchRecommender(recommender, vectors, files.request)


def write_item_vectors(retriever: Retriever, catalogue: ServedCatalogue, path: Path) -> None:
    """Embeds every item of the catalogue, unless the file is there."""
    if path.exists():
        return
    starts = range(0, len(catalogue), ITEMS_EMBEDDED_AT_ONCE)
    parts = [retriever.embed_candidates(catalogue.raw.slice(start, ITEMS_EMBEDDED_AT_ONCE)) for start in starts]

    def save(partial: Path) -> None:
        with partial.open("wb") as file:  # np.save would add .npy to the name
            np.save(file, np.concatenate(parts))

    write_whole(path, save)


def _no_interactions(columns: InteractionColumns) -> pa.Table:
    kinds = {columns.user.name: columns.user.dtype, columns.item.name: columns.item.dtype}
    return pa.table({name: pa.array([], pa.int64() if dtype == "int" else pa.string()) for name, dtype in kinds.items()})
