"""The vector index behind one interface: the protocol that every backend keeps, and the lazy table of backends.

A backend is one module with `write_index` and `open_index` as IndexBackend describes them, and one line in INDEXES. It is
imported only when a URI asks for it: `name:...` selects the backend of that name, every other URI (a folder, an object store's
URL) selects LanceDB, which has no prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import pyarrow as pa

INDEXES = {
    "lance": "recsys_ray.serving.index.lance",
    "faiss": "recsys_ray.serving.index.faiss",
    "databricks": "recsys_ray.serving.index.databricks",
}
DEFAULT_INDEX = "lance"
VECTOR = "vector"
"""The column of an item's vector, float32 lists of fixed size. A catalogue cannot have a column of this name."""
SCORE = "score"
"""The column of a search result that holds the dot product of query and item, float32."""
Condition: TypeAlias = str | dict[str, Any]
"""A filter on the catalogue's columns, in the backend's own language."""


class VectorIndex(Protocol):
    """An opened index over the item vectors of one model."""

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        where: Condition = "",
        exclude: Sequence[Iterable[Any]] = (),
        columns: list[str] | None = None,
    ) -> list[pa.Table]:
        """Returns for each query its k best items, best first, as a table of the item key, `columns` and SCORE.

        queries: float32 [Q, dim]. where: a condition that is applied before the search. exclude: for each query the keys that
        must not be returned. columns: None returns all columns of the catalogue. A table has fewer than k rows where the
        catalogue has no more, and none where the condition leaves none.
        Raises ValueError for queries of another size, or a condition that the backend does not understand.
        """


@dataclass(frozen=True)
class IndexSource:
    """The items that a backend writes into an index, all embedded by one model."""

    model_version: str
    key: str
    """The column that tells items apart."""
    schema: pa.Schema
    """The catalogue's raw columns and VECTOR, whose fixed list size is the dimension."""
    batches: Iterable[pa.RecordBatch]
    """The rows, which can be read once."""
    sample_queries: Callable[[int], np.ndarray]
    """Returns query vectors, float32 [at most n, dim], to measure recall with."""


class IndexBackend(Protocol):
    """The functions that a backend's module provides. `uri` is as the user wrote it, with the prefix `name:` where it has one."""

    def write_index(self, uri: str, source: IndexSource) -> str:
        """Replaces the index at `uri` and returns a line that describes it.

        The index that was served before is served until the new one is whole, and stays where writing fails. Raises ValueError
        for a URI or vectors that the backend cannot take.
        """

    def open_index(self, uri: str, model_version: str) -> VectorIndex:
        """Opens the index at `uri`. Raises FileNotFoundError or ValueError where there is none that this model built."""


def index_backend(uri: str) -> IndexBackend:
    """Imports the backend that a URI asks for."""
    scheme, colon, _ = uri.partition(":")
    name = scheme if colon and scheme in INDEXES else DEFAULT_INDEX
    return cast(IndexBackend, import_module(INDEXES[name]))


def open_index(uri: str, model_version: str) -> VectorIndex:
    """Opens the index at `uri` for the queries of one model: `Retriever.version` names it.

    Raises FileNotFoundError where there is no index, and ValueError where another model built it.
    """
    return index_backend(uri).open_index(uri, model_version)
