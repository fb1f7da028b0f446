"""One answered request, and its row in the request log.

A row has the columns time, request_id, kind, retriever_version, ranker_version, user, features (a list with a struct of raw
columns for each row that the request carried), items (a list with key, retrieval_score and ranking_score for each item of the
answer, best first) and milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from recsys_ray.data.transform import canonical_ids
from recsys_ray.schema import Categorical, Column, Schema, Side
from recsys_ray.serving.encoder import raw_type, with_unknown

RequestKind = Literal["recommend", "rank"]
Scores: TypeAlias = "Sequence[float] | np.ndarray | None"
"""A score for each item of an answer; None when the stage did not run. A score of NaN is stored as null."""


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A request that was answered, with its answer."""

    kind: RequestKind
    """recommend: the service found the items. rank: the caller named them."""
    request_id: str
    """Labels that come back are joined by it; it also decides whether a sampled log has the request."""
    features: pa.Table
    """Raw columns as the models read them: one row for recommend, one for each candidate for rank. Columns that the log's schemas
    do not have are left out; those that the table does not have are null."""
    items: Sequence[Any]
    """Keys of the items of the answer, best first; where the schema has no item key, what tells the rows of the request apart."""
    retrieval_scores: Scores = None
    ranking_scores: Scores = None
    user: int | str | None = None
    """The key of the user; None when the request named none, and then the log has the user of its rows, if there is one."""
    retriever_version: str = ""
    ranker_version: str = ""
    milliseconds: float = 0.0
    """The time between request and answer in the server."""
    time: float = field(default_factory=time.time)
    """When it was answered, in seconds since 1970."""

    @property
    def nbytes(self) -> int:
        """The memory that it holds, about."""
        return 1000 + self.features.nbytes + 100 * len(self.items)


@dataclass(frozen=True)
class LogFormat:
    """The columns of a log, which depend on the features and the keys of the models that are served."""

    features: dict[str, Column]
    user: Categorical | None
    item: Categorical | None

    @staticmethod
    def of(schemas: Sequence[Schema]) -> LogFormat:
        """Returns the format with the features of all schemas; of two with one name the first counts."""
        features = {column.name: column for schema in reversed(schemas) for column in reversed(schema.features)}
        return LogFormat(dict(reversed(features.items())), _key(schemas, "user"), _key(schemas, "item"))

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns of a log file."""
        answer = [("key", _key_type(self.item)), ("retrieval_score", pa.float32()), ("ranking_score", pa.float32())]
        row = [(name, raw_type(column)) for name, column in self.features.items()]
        return pa.schema(
            [
                ("time", pa.timestamp("us", "UTC")),
                ("request_id", pa.string()),
                ("kind", pa.string()),
                ("retriever_version", pa.string()),
                ("ranker_version", pa.string()),
                ("user", _key_type(self.user)),
                ("features", pa.list_(pa.struct(row))),
                ("items", pa.list_(pa.struct(answer))),
                ("milliseconds", pa.float64()),
            ]
        )

    def to_table(self, requests: Sequence[LoggedRequest]) -> pa.Table:
        """Returns the rows of these requests. Raises ValueError, TypeError or ArrowException for one that does not fit."""
        columns = {
            "time": pa.array([int(request.time * 1e6) for request in requests], pa.timestamp("us", "UTC")),
            "user": _keys(self.user, [self._user_of(request) for request in requests]),
            "features": self._features(requests),
            "items": self._items(requests),
        }
        schema = self.arrow_schema
        plain = [name for name in schema.names if name not in columns]
        columns |= {name: pa.array([getattr(one, name) for one in requests], schema.field(name).type) for name in plain}
        return pa.table([columns[name] for name in schema.names], schema)

    def _user_of(self, request: LoggedRequest) -> Any:
        """Returns the user of a request: the one that it names, else the only one of its rows."""
        if request.user is not None or self.user is None or self.user.name not in request.features.column_names:
            return request.user
        users = request.features[self.user.name].unique()
        return users[0].as_py() if len(users) == 1 else None

    def _features(self, requests: Sequence[LoggedRequest]) -> pa.Array:
        columns = list(self.features.values())
        schema = pa.schema([(column.name, raw_type(column)) for column in columns])
        parts = [schema.empty_table()]
        for request in requests:  # one by one: tables of several types together would turn large ids into floats
            rows = with_unknown(request.features, columns)
            parts.append(pa.table([_raw_values(column, rows[column.name].combine_chunks()) for column in columns], schema))
        rows = pa.concat_tables(parts).combine_chunks()
        values = [rows[column.name].combine_chunks() for column in columns]
        return _lists(pa.StructArray.from_arrays(values, fields=list(schema)), [one.features.num_rows for one in requests])

    def _items(self, requests: Sequence[LoggedRequest]) -> pa.Array:
        keys = _keys(self.item, [key for request in requests for key in request.items])
        retrieval = np.concatenate([np.zeros(0), *(_scores(one.retrieval_scores, one) for one in requests)])
        ranking = np.concatenate([np.zeros(0), *(_scores(one.ranking_scores, one) for one in requests)])
        scores = [pa.array(values, pa.float32(), from_pandas=True) for values in (retrieval, ranking)]
        answer = pa.StructArray.from_arrays([keys, *scores], names=["key", "retrieval_score", "ranking_score"])
        return _lists(answer, [len(request.items) for request in requests])


def _key(schemas: Sequence[Schema], side: Side) -> Categorical | None:
    return next((found for schema in schemas if (found := schema.key(side))), None)


def _key_type(key: Categorical | None) -> pa.DataType:
    return raw_type(key) if key else pa.string()


def _raw_values(column: Column, values: pa.Array) -> pa.Array:
    if isinstance(column, Categorical) and not column.multi:
        return canonical_ids(column, values)
    return values.cast(raw_type(column))


def _keys(key: Categorical | None, values: Sequence[Any]) -> pa.Array:
    """Returns keys in the type of their column; without a key column, as text."""
    if key is None:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return canonical_ids(key, pa.array(values))


def _lists(values: pa.Array, lengths: Sequence[int]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), values)


def _scores(scores: Scores, request: LoggedRequest) -> np.ndarray:
    """Returns float64 [items]. Raises ValueError when there is not one score for each item."""
    found = np.full(len(request.items), np.nan) if scores is None else np.asarray(scores, np.float64)
    if found.shape != (len(request.items),):
        raise ValueError(f"request {request.request_id}: {found.shape} scores for {len(request.items)} items")
    return found
