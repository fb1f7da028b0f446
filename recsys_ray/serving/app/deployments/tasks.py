"""Questions to the deployments, and their answers. Ingress replicas import this module, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from recsys_ray.serving.bundle import InferenceEngine, TablePrecision

REQUESTS_AT_ONCE = 32
"""The most requests that go through a model together."""


@dataclass(frozen=True)
class ModelSources:
    """The locations of everything that one release serves."""

    retriever: str
    ranker: str
    index: str = ""
    """A URI that `open_index` takes; empty: exact search in memory, over vectors that the service embeds as it starts."""
    users: tuple[str, ...] = ()
    """Parquet tables of raw user columns."""
    interactions: str = ""
    """A Parquet table of what users did, for the page; empty: the splits of the retrieval model's dataset."""
    threads: int = 1
    """Threads on which a replica computes."""
    inference: InferenceEngine = "auto"
    """Chooses the engine of the ranking model's dense part, as `load_bundle` does."""
    tables: TablePrecision = "fp32"
    """The type of the ranking model's embeddings in memory."""


class Comparison(NamedTuple):
    """A condition on an item's column; a null meets none."""

    column: str
    op: str
    value: Any

    def __hash__(self) -> int:
        return hash((self.column, self.op, str(self.value)))


class UserQuery(NamedTuple):
    """A request as retrieval sees it."""

    user: int | str | None
    features: dict[str, Any]
    n: int
    where: tuple[Comparison, ...]
    exclude: list[int | str]


class FoundItems(NamedTuple):
    """The candidates that retrieval found for a user."""

    user: dict[str, Any]
    """The user's raw columns: those given, and those stored."""
    items: pa.Array
    """Keys, best first."""
    scores: np.ndarray
    """float32; NaN for popular items."""
    personal: bool
    retriever: str
    index_name: str


class RankingTask(NamedTuple):
    """The candidates of a user, to be put in order."""

    user: dict[str, Any]
    items: pa.Array
    scores: np.ndarray
    k: int
    columns: list[str]
    personal: bool
    """True where the ranking model puts the items in order; popular items keep the order that they have."""


class RankedItems(NamedTuple):
    """The k best items, as the answer has them."""

    items: list[dict[str, Any]]
    ranker: str


class RowScores(NamedTuple):
    """A score for each item or row; None for an item that is not in the catalogue."""

    scores: list[float | None]
    ignored: list[str]
    """Names of columns that the model does not read."""
    ranker: str


class Refused(NamedTuple):
    """The reason why a request cannot be answered as it is."""

    reason: str
