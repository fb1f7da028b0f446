"""The vector index on Databricks AI Search (once Vector Search), behind the same `search`: a thin adapter.

A direct access index holds the vectors of one model version and carries it in its name, `<name>_<version>`, so that an old one
is served until the new one is whole, and one of another version is never found. Its address is `databricks:endpoint/name`, the
name in three parts. Wants `pip install databricks-ai-search` and the workspace's credentials. Written from the SDK's source;
never run against a workspace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.serving.index.lance import SCORE, VECTOR

SCHEME = "databricks:"
UPSERT_ROWS = 1000
TYPES = {pa.int64(): "long", pa.int32(): "int", pa.float32(): "float", pa.float64(): "double", pa.bool_(): "boolean"}


@dataclass(frozen=True)
class DatabricksIndex:
    index: Any
    """databricks.ai_search.index.VectorSearchIndex"""
    key: str
    columns: list[str]

    def search(
        self, queries: np.ndarray, k: int, where: str | dict[str, Any] = "", exclude: Sequence[Iterable[Any]] = ()
    ) -> list[pa.Table]:
        """As Index.search; `where` is a filter of Databricks: a dict, or SQL on a storage-optimised endpoint."""
        excluded = [set(one) for one in exclude] or [set() for _ in queries]
        return [self._search(query, k, where or None, keys) for query, keys in zip(queries, excluded, strict=True)]

    def _search(self, query: np.ndarray, k: int, where: Any, excluded: set[Any]) -> pa.Table:
        answer = self.index.similarity_search(
            columns=self.columns, query_vector=query.tolist(), filters=where, num_results=k + len(excluded), disable_notice=True
        )
        rows = [dict(zip([*self.columns, SCORE], row, strict=True)) for row in answer["result"].get("data_array", [])]
        kept = [row for row in rows if row[self.key] not in excluded][:k]
        return pa.Table.from_pylist(kept) if kept else pa.table({name: [] for name in [*self.columns, SCORE]})


def connect() -> Any:
    """The AISearchClient of the workspace. Raises ValueError where the SDK is not installed."""
    try:
        from databricks.ai_search.client import AISearchClient
    except ModuleNotFoundError as error:
        raise ValueError(f"--index {SCHEME}... wants databricks-ai-search: pip install databricks-ai-search") from error
    return AISearchClient(disable_notice=True)


def address(uri: str, model_version: str) -> tuple[str, str]:
    """Endpoint, and the name of the index of this model version. Raises ValueError for another form."""
    endpoint, slash, name = uri.removeprefix(SCHEME).partition("/")
    if not (endpoint and slash and name.count(".") == 2):
        raise ValueError(f"--index {uri}: wants {SCHEME}endpoint/catalog.schema.name")
    return endpoint, f"{name}_{model_version}"


def write_databricks_index(
    client: Any, uri: str, model_version: str, key: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> int:
    """Creates the index of this version, replacing one of the same, and fills it; removes it again where that fails. Returns how
    many items it holds.

    Raises ValueError for vectors not of length 1, since Databricks ranks by distance and not by dot product.
    """
    endpoint, full_name = address(uri, model_version)
    if client.index_exists(endpoint_name=endpoint, index_name=full_name):
        client.delete_index(endpoint_name=endpoint, index_name=full_name)
    dim = schema.field(VECTOR).type.list_size
    types = {field.name: TYPES.get(field.type, "string") for field in schema if field.name != VECTOR}
    index = client.create_direct_access_index(
        endpoint_name=endpoint,
        index_name=full_name,
        primary_key=key,
        embedding_dimension=dim,
        embedding_vector_column=VECTOR,
        schema={**types, VECTOR: "array<float>"},
    )
    items = 0
    try:
        index.wait_until_ready()
        for batch in batches:
            items += batch.num_rows
            _check_length_one(batch)
            rows = [{name: _plain(value) for name, value in row.items()} for row in batch.to_pylist()]
            for first in range(0, len(rows), UPSERT_ROWS):
                index.upsert(rows[first : first + UPSERT_ROWS])
    except BaseException:
        client.delete_index(endpoint_name=endpoint, index_name=full_name)
        raise
    return items


def open_databricks_index(client: Any, uri: str, model_version: str, key: str, columns: list[str]) -> DatabricksIndex:
    """Raises ValueError where no index of this model version is there."""
    endpoint, full_name = address(uri, model_version)
    if not client.index_exists(endpoint_name=endpoint, index_name=full_name):
        raise ValueError(f"no index {full_name} at endpoint {endpoint}: build one for this model with jobs/build_index.py")
    return DatabricksIndex(client.get_index(endpoint_name=endpoint, index_name=full_name), key, columns)


def _check_length_one(batch: pa.RecordBatch) -> None:
    vectors = batch.column(VECTOR).flatten().to_numpy().reshape(batch.num_rows, -1)
    if batch.num_rows and not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise ValueError("Databricks ranks by distance, so vectors must be of length 1: train with --model.normalize")


def _plain(value: Any) -> Any:
    """Lists other than vectors as text: the index takes no other."""
    return ", ".join(map(str, value)) if isinstance(value, list) and value and isinstance(value[0], str) else value
