"""The first deployment: looks up users, embeds them together, and finds candidates for each, or the most popular items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray import serve

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.schema import QUERY_SIDES, Categorical, Column, Schema
from recsys_ray.serving.app.deployments.filters import eligible_items, sql_condition
from recsys_ray.serving.app.deployments.tasks import REQUESTS_AT_ONCE, Comparison, FoundItems, ModelSources, Refused, UserQuery
from recsys_ray.serving.app.deployments.users import UserTable, raw_table
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.serving.index.vector_index import SCORE, VectorIndex, open_index
from recsys_ray.serving.location import bundle_folder
from recsys_ray.serving.recommender.candidates import NONE, RetrievedItems, exact_candidates
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue

EXACT = "exact"
"""Stands in answers where there is no index: the service holds the vectors itself and compares all of them."""


class Retrieval:
    """A replica with the retrieval model, the catalogue, the index, and the table of users."""

    def __init__(self, sources: ModelSources) -> None:
        torch.set_num_threads(sources.threads)
        retriever = load_retriever(sources.retriever)
        self.catalogue = ServedCatalogue.load(DatasetDirectory.open(retriever.dataset), retriever.item_key)
        self.recommender = Recommender(retriever, None, self.catalogue)
        self.wanted = retriever.schema.features_of(*QUERY_SIDES)
        self.user_columns = {
            column.name: column for column in (*self.wanted, *schema_of(sources.ranker).features_of(*QUERY_SIDES))
        }
        self.users = _load_users(sources, retriever.schema, list(self.user_columns.values()))
        self.index = open_index(sources.index, retriever.version) if sources.index else None
        self.vectors = torch.zeros(0) if self.index else embedded_items(self.recommender)
        self.by_popularity = np.argsort(-self.catalogue.frequency, kind="stable")
        self.names = (retriever.version, sources.index or EXACT)

    def versions(self) -> tuple[str, str]:
        """Returns the version of the model and the name of the index."""
        return self.names

    def item_columns(self, most: int) -> list[dict[str, Any]]:
        """Returns name, type and at most `most` frequent values of each column of the items, for people who choose filters."""
        return [_described(self.catalogue.raw[name], name, most) for name in self.catalogue.raw.column_names]

    async def complete(self, query: UserQuery) -> dict[str, Any] | Refused:
        """Returns the raw columns of a user: those given, and those stored."""
        try:
            row = self._row(query)
            raw_table([row], list(self.user_columns.values()))
            return row
        except ValueError as error:
            return Refused(str(error))

    @serve.batch(max_batch_size=REQUESTS_AT_ONCE, batch_wait_timeout_s=0)
    async def find(self, queries: list[UserQuery]) -> list[FoundItems | Refused]:
        """Returns the candidates of each query. All that wait are embedded and searched together."""
        return self._find_each(queries)

    def _find_each(self, queries: list[UserQuery]) -> list[FoundItems | Refused]:
        """Tries all together; where that fails, each alone, so that one bad request does not spoil another."""
        try:
            return self._find(queries)
        except ValueError as error:
            if len(queries) == 1:
                return [Refused(str(error))]
            return [found for query in queries for found in self._find_each([query])]

    def _find(self, queries: list[UserQuery]) -> list[FoundItems | Refused]:
        rows = [self._row(query) for query in queries]
        raw_table(rows, list(self.user_columns.values()))  # the ranking model reads what it alone knows later
        table = raw_table(rows, self.wanted)
        retriever = self.recommender.retriever
        encoded = retriever.encoder.encode(table, self.wanted)
        personal = _anything_known(table, encoded, self.wanted)
        vectors = retriever.embed_encoded_queries(encoded)
        found: list[FoundItems | Refused] = [Refused("")] * len(queries)
        for where in dict.fromkeys(query.where for query in queries):
            places = [place for place, query in enumerate(queries) if query.where == where]
            known, unknown = [place for place in places if personal[place]], [place for place in places if not personal[place]]
            items = self._nearest(vectors[known], [queries[place] for place in known], where)
            items += [self._popular(queries[place]) for place in unknown]
            for place, (keys, scores) in zip([*known, *unknown], items, strict=True):
                found[place] = FoundItems(rows[place], keys, scores, bool(personal[place]), *self.names)
        return found

    def _row(self, query: UserQuery) -> dict[str, Any]:
        given = {name: value for name, value in query.features.items() if name in self.user_columns}
        if query.user is None:
            return given
        return self.users.find(query.user) | given | {self.recommender.retriever.user_key: query.user}

    def _nearest(
        self, vectors: np.ndarray, queries: list[UserQuery], where: tuple[Comparison, ...]
    ) -> list[tuple[pa.Array, np.ndarray]]:
        """Returns keys and scores of the items nearest to each query; all queries have the same conditions."""
        if not queries:
            return []
        n = max(query.n for query in queries)
        if self.index is not None:
            return self._search(self.index, vectors, queries, where)
        eligible = eligible_items(self.catalogue.raw, where) if where else None
        exclude = [self._positions(query.exclude) for query in queries] if any(query.exclude for query in queries) else []
        found = exact_candidates(vectors, self.vectors, n, exclude, eligible=eligible)
        return [self._keys(RetrievedItems(*row), query.n) for row, query in zip(zip(*found, strict=True), queries, strict=True)]

    def _search(
        self, index: VectorIndex, vectors: np.ndarray, queries: list[UserQuery], where: tuple[Comparison, ...]
    ) -> list[tuple[pa.Array, np.ndarray]]:
        condition = sql_condition(self.catalogue.raw.schema, where)
        barred = [self._positions(query.exclude) for query in queries]
        exclude = [self.catalogue.keys(positions[positions != NONE]).to_pylist() for positions in barred]
        n = max(query.n for query in queries)
        tables = index.search(vectors, n, where=condition, exclude=exclude if any(exclude) else (), columns=[])
        return [
            (table[self.catalogue.key].combine_chunks()[: query.n], table[SCORE].to_numpy().astype(np.float32)[: query.n])
            for table, query in zip(tables, queries, strict=True)
        ]

    def _popular(self, query: UserQuery) -> tuple[pa.Array, np.ndarray]:
        eligible = eligible_items(self.catalogue.raw, query.where)
        barred = self._positions(query.exclude)
        eligible[barred[barred != NONE]] = False
        best = self.by_popularity[eligible[self.by_popularity]][: query.n]
        return self.catalogue.keys(best), np.full(len(best), np.nan, np.float32)

    def _keys(self, found: RetrievedItems, n: int) -> tuple[pa.Array, np.ndarray]:
        kept = found.positions[:n] != NONE
        return self.catalogue.keys(found.positions[:n][kept]), found.scores[:n][kept]

    def _positions(self, keys: Sequence[int | str]) -> np.ndarray:
        """Returns the positions of items to leave out; a key of another type than the catalogue's is of no item."""
        wanted = int if pa.types.is_integer(self.catalogue.lookup.values.type) else str
        return self.catalogue.positions([key for key in keys if isinstance(key, wanted)])


def schema_of(location: str) -> Schema:
    """Reads the schema of a bundle without loading the model."""
    return Schema.load(open_bundle(bundle_folder(location)).folder / "schema.json")


def embedded_items(recommender: Recommender) -> torch.Tensor:
    """Returns the vectors of all items of the catalogue, float32 [N, dim]."""
    return torch.from_numpy(recommender.retriever.embed_candidates(recommender.catalogue.raw))


def _load_users(sources: ModelSources, schema: Schema, columns: Sequence[Column]) -> UserTable:
    key, timestamp = schema.key("user"), schema.timestamp
    assert key is not None
    return UserTable.load(sources.users, key, columns, timestamp.name if timestamp else "")


def _anything_known(table: pa.Table, encoded: Columns, columns: Sequence[Column]) -> np.ndarray:
    """Returns for which rows the model knows a value at all, bool [rows]: a number, or an id that it was trained on."""
    known = np.zeros(table.num_rows, bool)
    for column in columns:
        if not isinstance(column, Categorical):
            known |= table[column.name].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
            continue
        values = encoded[column.name].numpy() != 0
        if column.multi:
            row = np.repeat(np.arange(len(known)), encoded[column.name + LENGTHS].numpy())
            values = np.bincount(row[values], minlength=len(known)) > 0
        known |= values
    return known


def _described(values: pa.ChunkedArray, name: str, most: int) -> dict[str, Any]:
    column = values.combine_chunks()
    kind = column.type
    if pa.types.is_list(kind):
        column, kind = column.flatten(), kind.value_type
    counts = sorted(column.value_counts().to_pylist(), key=lambda one: -one["counts"])
    frequent = [one["values"] for one in counts[:most] if one["values"] is not None] if len(counts) <= most else []
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return {"name": name, "list": pa.types.is_list(values.type), "number": number, "values": frequent}
