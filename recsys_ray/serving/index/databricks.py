"""The vector index on Databricks AI Search (formerly Vector Search), as a thin adapter.

A direct access index holds the vectors of one model version and carries the version in its name, `<name>_<version>`: the old
index is served until the new one is whole, and the index of another version is never found. Its URI is `databricks:endpoint/name`
with a name of three parts. Needs `pip install databricks-ai-search` and the workspace's credentials. Written from the SDK's
source; never run against a workspace.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from recsys_ray.serving.index.vector_index import SCORE, VECTOR, Condition, IndexSource

SCHEME = "databricks:"
UPSERT_ROWS = 1000
DATABRICKS_TYPES = {pa.int64(): "long", pa.int32(): "int", pa.float32(): "float", pa.float64(): "double", pa.bool_(): "boolean"}
"""Arrow type -> the type in an index's schema; any other is stored as a string."""


class IndexAddress(NamedTuple):
    """The endpoint and the name of the index of one model version."""

    endpoint: str
    name: str
    """catalog.schema.name_version"""


@dataclass(frozen=True)
class DatabricksIndex:
    """A VectorIndex over one direct access index. Conditions are dicts, or SQL on a storage-optimised endpoint."""

    index: Any
    """databricks.ai_search.index.AISearchIndex"""
    key: str
    catalogue_columns: list[str]

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        where: Condition = "",
        exclude: Sequence[Iterable[Any]] = (),
        columns: list[str] | None = None,
    ) -> list[pa.Table]:
        """See VectorIndex.search."""
        kept = columns if columns is not None else self.catalogue_columns
        search = _Search(self.index, k, where, list(dict.fromkeys([self.key, *kept])))
        excluded = [set(keys) for keys in exclude] or [set() for _ in queries]
        return [search.run(query, keys) for query, keys in zip(queries, excluded, strict=True)]


@dataclass(frozen=True)
class _Search:
    index: Any
    k: int
    where: Condition
    columns: list[str]
    """The key comes first."""

    def run(self, query: np.ndarray, excluded: set[Any]) -> pa.Table:
        answer = self.index.similarity_search(
            columns=self.columns,
            query_vector=query.tolist(),
            filters=self.where or None,
            num_results=self.k + len(excluded),
            disable_notice=True,
        )
        names = [*self.columns, SCORE]
        rows = [dict(zip(names, row, strict=True)) for row in answer["result"].get("data_array", [])]
        kept = [row for row in rows if row[self.columns[0]] not in excluded][: self.k]
        return pa.Table.from_pylist(kept) if kept else pa.table({name: [] for name in names})


def workspace_client() -> Any:
    """Returns the AISearchClient of the workspace. Raises ValueError where the SDK is not installed."""
    try:
        from databricks.ai_search.client import AISearchClient
    except ModuleNotFoundError as error:
        raise ValueError(f"--index {SCHEME}... wants databricks-ai-search: pip install databricks-ai-search") from error
    return AISearchClient(disable_notice=True)


def index_address(uri: str, model_version: str) -> IndexAddress:
    """Returns the endpoint and the index of this model version. Raises ValueError for a URI of another form."""
    endpoint, slash, name = uri.removeprefix(SCHEME).partition("/")
    if not (endpoint and slash and name.count(".") == 2):
        raise ValueError(f"--index {uri}: wants {SCHEME}endpoint/catalog.schema.name")
    return IndexAddress(endpoint, f"{name}_{model_version}")


def open_index(uri: str, model_version: str) -> DatabricksIndex:
    """Opens the index of this model version. Raises ValueError where there is none."""
    client, (endpoint, name) = workspace_client(), index_address(uri, model_version)
    if not client.index_exists(endpoint_name=endpoint, index_name=name):
        raise ValueError(f"no index {name} at endpoint {endpoint}: build one for this model with jobs/build_index.py")
    index = client.get_index(endpoint_name=endpoint, index_name=name)
    description = index.describe()
    columns = json.loads(description["direct_access_index_spec"]["schema_json"])
    return DatabricksIndex(index, description["primary_key"], [name for name in columns if name != VECTOR])


def write_index(uri: str, source: IndexSource) -> str:
    """Creates and fills the index of this model version, replacing one of the same version; deletes it where that fails.

    Raises ValueError for vectors that are not of length 1, since Databricks ranks by distance and not by dot product.
    """
    client, (endpoint, name) = workspace_client(), index_address(uri, source.model_version)
    if client.index_exists(endpoint_name=endpoint, index_name=name):
        client.delete_index(endpoint_name=endpoint, index_name=name)
    dim = source.schema.field(VECTOR).type.list_size
    types = {field.name: DATABRICKS_TYPES.get(field.type, "string") for field in source.schema if field.name != VECTOR}
    index = client.create_direct_access_index(
        endpoint_name=endpoint,
        index_name=name,
        primary_key=source.key,
        embedding_dimension=dim,
        embedding_vector_column=VECTOR,
        schema={**types, VECTOR: "array<float>"},
    )
    try:
        items = _upsert(index, source.batches)
    except BaseException:
        client.delete_index(endpoint_name=endpoint, index_name=name)
        raise
    return f"{items:,} items of {dim} numbers, model {source.model_version}"


def _upsert(index: Any, batches: Iterable[pa.RecordBatch]) -> int:
    """Returns how many items were written."""
    index.wait_until_ready()
    items = 0
    for batch in batches:
        items += batch.num_rows
        _check_length_one(batch)
        rows = [{name: _without_lists(value) for name, value in row.items()} for row in batch.to_pylist()]
        for first in range(0, len(rows), UPSERT_ROWS):
            index.upsert(rows[first : first + UPSERT_ROWS])
    return items


def _check_length_one(batch: pa.RecordBatch) -> None:
    vectors = batch.column(VECTOR).flatten().to_numpy().reshape(batch.num_rows, -1)
    if batch.num_rows and not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise ValueError("Databricks ranks by distance, so vectors must be of length 1: train with --model.normalize")


def _without_lists(value: Any) -> Any:
    """Joins a list of strings into one text: the vector is the only list that an index takes."""
    return ", ".join(map(str, value)) if isinstance(value, list) and value and isinstance(value[0], str) else value
