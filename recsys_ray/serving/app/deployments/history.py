"""The deployment behind the page: a sample of users, and what each of them has seen and liked.

It reads the interactions once, in the background, and keeps those of the sample alone, whatever their number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue, load_vocabularies
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.data.transform import as_seconds, positive_rows
from recsys_ray.schema import Categorical, Schema
from recsys_ray.serving.app.deployments.retrieval import schema_of
from recsys_ray.serving.app.deployments.tasks import ModelSources

SAMPLED_USERS = 200
SHOWN = 50
"""Liked items that are returned with their columns."""
log = logging.getLogger(__name__)


class RawInteractions(NamedTuple):
    """Rows of raw ids."""

    users: pa.Array
    items: pa.Array
    liked: np.ndarray
    """bool"""
    times: np.ndarray
    """int64; zeros where the data have no time."""


class Event(NamedTuple):
    """An item that a user has seen."""

    time: int
    item: Any
    liked: bool


class History:
    """The sampled users, and the items of each."""

    def __init__(self, sources: ModelSources, dataset: str) -> None:
        self.events: dict[Any, list[Event]] = {}
        self.read, self.fault = False, ""
        directory = DatasetDirectory.open(dataset)
        key = directory.schema.key("item")
        assert key is not None
        self.items, self.key = load_catalogue(directory), key.name
        threading.Thread(target=self._read, args=(sources, directory), daemon=True).start()

    def users(self) -> dict[str, Any]:
        """Returns the ids of the sampled users, whether all interactions have been read, and what went wrong with that."""
        return {"users": list(self.events), "complete": self.read, "fault": self.fault}

    def of_user(self, user: Any) -> dict[str, Any]:
        """Returns the ids that a user has seen, and the items that the user liked, the latest first; nothing of other users."""
        events = sorted(self.events.get(user, []), key=lambda event: event.time, reverse=True)
        liked = [event.item for event in events if event.liked][:SHOWN]
        rows = self.items.filter(pa.compute.is_in(self.items[self.key], pa.array(liked, self.items[self.key].type))).to_pylist()
        by_key = {row[self.key]: {name: one for name, one in row.items() if name != FREQUENCY} for row in rows}
        seen = list(dict.fromkeys(event.item for event in events))
        return {"known": user in self.events, "seen": seen, "liked": [by_key[key] for key in liked if key in by_key]}

    def _read(self, sources: ModelSources, dataset: DatasetDirectory) -> None:
        schema = schema_of(sources.retriever)
        try:
            parts = raw_interactions(sources.interactions, schema) if sources.interactions else split_interactions(dataset)
            for part in parts:
                self._keep(part)
        except (ValueError, OSError, pa.ArrowException) as error:
            log.warning("history: %s", error)
            self.fault = str(error)
        self.read = True

    def _keep(self, part: RawInteractions) -> None:
        for user in part.users.unique().to_pylist():
            if len(self.events) < SAMPLED_USERS and user is not None:
                self.events.setdefault(user, [])
        kept = pa.compute.is_in(part.users, pa.array(list(self.events), part.users.type)).to_numpy(zero_copy_only=False)
        kept &= part.items.is_valid().to_numpy(zero_copy_only=False)
        users, items = (ids.take(pa.array(np.flatnonzero(kept))).to_pylist() for ids in (part.users, part.items))
        for user, *event in zip(users, part.times[kept].tolist(), items, part.liked[kept].tolist(), strict=True):
            self.events[user].append(Event(*event))


def raw_interactions(path: str, schema: Schema) -> Iterator[RawInteractions]:
    """Yields the interactions of Parquet, as `find_parquet` finds it. Raises ValueError where it lacks a column."""
    keys = [schema.key("user"), schema.key("item")]
    names = [column.name for column in (*keys, schema.label, schema.timestamp) if column is not None]
    for table in find_parquet(path).batches(names):
        users, items = (table[name].combine_chunks() for name in names[:2])
        times = as_seconds(table[schema.timestamp.name].combine_chunks()) if schema.timestamp else pa.array([0] * len(table))
        yield RawInteractions(users, items, positive_rows(table, schema), times.fill_null(0).to_numpy())


def split_interactions(dataset: DatasetDirectory) -> Iterator[RawInteractions]:
    """Yields the interactions of the train and validation splits. Raises ValueError where their ids cannot be told."""
    schema = dataset.schema
    user, item = schema.key("user"), schema.key("item")
    assert user is not None and item is not None
    names = {column.name: _raw_ids(dataset, column) for column in (user, item)}
    for split in ("train", "validation"):
        for columns in read_split(dataset, split):
            users, items = (names[one.name].take(pa.array(columns[one.name].numpy().astype(np.int64))) for one in (user, item))
            liked = columns[schema.label.name].numpy() > 0 if schema.label else np.ones(len(users), bool)
            times = columns[schema.timestamp.name].numpy() if schema.timestamp else np.zeros(len(users), np.int64)
            yield RawInteractions(users, items, liked, times)


def _raw_ids(dataset: DatasetDirectory, column: Categorical) -> pa.Array:
    """Returns the raw id of each table row; null for row 0."""
    if column.encoding == "identity":
        return pa.array([None, *range(column.num_embeddings - 1)], pa.int64())
    if column.encoding == "hash":
        raise ValueError(f"the dataset holds hashes of {column.name!r} in place of ids: pass --interactions")
    values = load_vocabularies(dataset.root, dataset.schema)[column.table_name]
    return pa.concat_arrays([pa.nulls(1, values.type), values])
