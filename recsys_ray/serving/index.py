"""The vector index: every item's vector with its raw columns, in LanceDB, on disk or an object store.

`index.json` at the root says which table is served, by which model it was built, and how well it searches; it is replaced in one
step, last. A build that fails leaves the served table as it was. The table before stays until the next build, for readers that
opened it. Small catalogues are searched exactly; larger ones by inverted lists of vectors (IVF), scanned exactly.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import fsspec
import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfFlat

VECTOR, SCORE = "vector", "score"
MANIFEST = "index.json"
EXACT_BELOW = 50_000
"""Items that are searched one by one: a millisecond or two."""
LIST_ITEMS, PROBED = 1000, 0.06
"""Vectors in an inverted list, about, and the share of the lists that a search scans."""
RECALL_AT, RECALL_QUERIES = 100, 200


@dataclass(frozen=True)
class Manifest:
    """index.json."""

    table: str
    model_version: str
    key: str
    """The column that tells items apart."""
    items: int
    dim: int
    probes: int
    """Inverted lists that a search scans; 0: all vectors."""
    recall: float = 1.0
    """At RECALL_AT, of `recall_queries` queries, against exact search."""
    recall_queries: int = 0
    previous: str = ""
    """The table served before."""


@dataclass(frozen=True)
class Index:
    manifest: Manifest
    table: Any

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: str = "",
        exclude: Sequence[Iterable[Any]] = (),
        columns: list[str] | None = None,
    ) -> list[pa.Table]:
        """For each query [Q, dim] its k best items, best first: key, `columns` (None: all that the catalogue has) and score.

        where: an SQL condition on the catalogue's columns, applied before the search. exclude: for each query, keys that must not
        come back. Fewer than k come back where the catalogue has no more, none where the condition leaves none.
        Raises ValueError for queries of another size, or a condition that cannot be understood.
        """
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries have shape {queries.shape}; this index wants [any, {self.manifest.dim}]")
        if exclude and len(exclude) != len(queries):
            raise ValueError(f"{len(exclude)} exclusion lists for {len(queries)} queries: wants one each")
        kept = columns if columns is not None else [name for name in self.table.schema.names if name != VECTOR]
        wanted = list(dict.fromkeys([self.manifest.key, *kept]))
        excluded = [list(one) for one in exclude] or [[] for _ in queries]
        return [self._search(query, k, where, keys, wanted) for query, keys in zip(queries, excluded, strict=True)]

    def _search(self, query: np.ndarray, k: int, where: str, excluded: list[Any], wanted: list[str]) -> pa.Table:
        search = self.table.search(query, vector_column_name=VECTOR).distance_type("dot").select([*wanted, "_distance"])
        search = search.limit(k + len(excluded))
        search = search.nprobes(self.manifest.probes) if self.manifest.probes else search.bypass_vector_index()
        try:
            found = (search.where(where, prefilter=True) if where else search).to_arrow()
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"cannot search where {where!r}: {error}" if where else str(error)) from error
        if excluded:
            key = found[self.manifest.key]
            found = found.filter(pa.compute.invert(pa.compute.is_in(key, value_set=pa.array(excluded, key.type))))
        score = pa.compute.subtract(1.0, found["_distance"])  # Lance's distance is 1 - dot product.
        return found.drop_columns(["_distance"]).append_column(SCORE, score).slice(0, k)


def open_index(uri: str, model_version: str) -> Index:
    """The index now served at `uri`. Raises FileNotFoundError where there is none, ValueError where another model built it."""
    manifest = read_manifest(uri)
    if manifest is None:
        raise FileNotFoundError(f"no index at {uri}: build one with jobs/build_index.py")
    if manifest.model_version != model_version:
        raise ValueError(
            f"the index at {uri} was built by model {manifest.model_version}, and this is model {model_version}: their vectors do "
            "not belong together. Build it again with jobs/build_index.py"
        )
    return Index(manifest, lancedb.connect(uri).open_table(manifest.table))


@dataclass
class IndexWriter:
    """Builds the next table of an index. `with IndexWriter.begin(...) as writer:` removes the table where the body fails."""

    uri: str
    manifest: Manifest
    database: Any

    @staticmethod
    def begin(uri: str, model_version: str, key: str) -> IndexWriter:
        served = read_manifest(uri)
        table = f"items_{model_version}_{uuid.uuid4().hex[:8]}"
        manifest = Manifest(table, model_version, key, 0, 0, 0, previous=served.table if served else "")
        return IndexWriter(uri, manifest, lancedb.connect(uri))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.manifest.table in table_names(self.database):
            self.database.drop_table(self.manifest.table)

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Index:
        """Rows with a VECTOR column of fixed size; they are searchable afterwards, by nobody but the caller."""
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        table = self.database.create_table(self.manifest.table, reader, schema=schema)
        items, dim = table.count_rows(), schema.field(VECTOR).type.list_size
        probes = 0
        if items >= EXACT_BELOW:
            lists = max(1, items // LIST_ITEMS)
            table.create_index(VECTOR, config=IvfFlat(distance_type="dot", num_partitions=lists))
            probes = max(1, round(lists * PROBED))
        self.manifest = dataclasses.replace(self.manifest, items=items, dim=dim, probes=probes)
        return Index(self.manifest, table)

    def publish(self, recall: float, queries: int) -> Manifest:
        """From now on this table is served; all but it and the one before are removed."""
        self.manifest = dataclasses.replace(self.manifest, recall=recall, recall_queries=queries)
        write_manifest(self.uri, self.manifest)
        for name in table_names(self.database):
            if name not in (self.manifest.table, self.manifest.previous):
                self.database.drop_table(name)
        return self.manifest


def measured_recall(index: Index, queries: np.ndarray) -> float:
    """Share of the exact RECALL_AT best items that a search finds, over all queries."""
    k = min(RECALL_AT, index.manifest.items)
    exact = Index(dataclasses.replace(index.manifest, probes=0), index.table)
    key = index.manifest.key
    pairs = zip(index.search(queries, k, columns=[]), exact.search(queries, k, columns=[]), strict=True)
    return float(np.mean([len(set(found[key].to_pylist()) & set(best[key].to_pylist())) / k for found, best in pairs]))


def table_names(database: Any) -> list[str]:
    return list(database.table_names(limit=1 << 20))


def read_manifest(uri: str) -> Manifest | None:
    files, root = fsspec.core.url_to_fs(uri)
    if not files.exists(f"{root}/{MANIFEST}"):
        return None
    return Manifest(**json.loads(files.cat_file(f"{root}/{MANIFEST}")))


def write_manifest(uri: str, manifest: Manifest) -> None:
    files, root = fsspec.core.url_to_fs(uri)
    partial = f"{root}/.{MANIFEST}.{uuid.uuid4().hex[:8]}"
    files.pipe_file(partial, (json.dumps(dataclasses.asdict(manifest), indent=2) + "\n").encode())
    files.mv(partial, f"{root}/{MANIFEST}")
