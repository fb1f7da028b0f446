"""The vector index: every item's vector with its raw columns, in LanceDB, on disk or an object store.

`index.json` at the root says which table is served, by which model it was built, and how well it searches; it is replaced in one
step, last. A build that fails leaves the served table as it was. The table before stays until the next build, for readers that
opened it. Small catalogues are searched exactly; larger ones by inverted lists of vectors (IVF), of which a search scans as many
as it takes to find RECALL_WANTED of what exact search finds: how many that is, is measured when the index is built.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

VECTOR, SCORE = "vector", "score"
MANIFEST = "index.json"
EXACT_BELOW = 50_000
"""Items that are searched one by one: a millisecond or two."""
LIST_ITEMS, PROBED = 1000, (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Vectors in an inverted list, about, and the shares of the lists that are tried."""
RECALL_AT, RECALL_WANTED, RECALL_QUERIES = 100, 0.995, 200


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
        limit = k + len(excluded)
        found = self._nearest(query, limit, where, wanted, self.manifest.probes)
        if self.manifest.probes and found.num_rows < min(limit, self.manifest.items):
            # The lists scanned hold too few that pass the condition, or that are wanted.
            found = self._nearest(query, limit, where, wanted, 0)
        if excluded:
            key = found[self.manifest.key]
            found = found.filter(pc.invert(pc.is_in(key, value_set=pa.array(excluded, key.type))))
        score = pc.subtract(1.0, found["_distance"])  # Lance's distance is 1 - dot product.
        return found.drop_columns(["_distance"]).append_column(SCORE, score).slice(0, k)

    def _nearest(self, query: np.ndarray, limit: int, where: str, wanted: list[str], probes: int) -> pa.Table:
        search = self.table.search(query, vector_column_name=VECTOR).distance_type("dot").select([*wanted, "_distance"])
        search = search.limit(limit)
        search = search.nprobes(probes) if probes else search.bypass_vector_index()
        try:
            return (search.where(where, prefilter=True) if where else search).to_arrow()
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"cannot search where {where!r}: {error}" if where else str(error)) from error


def open_index(uri: str, model_version: str) -> Index:
    """The index now served at `uri`. Raises FileNotFoundError where there is none, ValueError where another model built it."""
    manifest = read_manifest(uri)
    if manifest is None:
        raise FileNotFoundError(f"no index at {uri}: build one with jobs/build_index.py")
    if manifest.model_version != model_version:
        raise ValueError(
            f"the index at {uri} was built by model {manifest.model_version}, and this is model {model_version}: their vectors "
            "do not belong together. Build it again with jobs/build_index.py"
        )
    return Index(manifest, connect(uri).open_table(manifest.table))


def connect(uri: str) -> Any:
    # Not at the top: once it is loaded, every process that this one starts, Ray's among them, prints a warning.
    import lancedb

    return lancedb.connect(uri)


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
        return IndexWriter(uri, manifest, connect(uri))

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
        if items >= EXACT_BELOW:
            from lancedb.index import IvfFlat  # as in `connect`

            table.create_index(VECTOR, config=IvfFlat(distance_type="dot", num_partitions=items // LIST_ITEMS))
        self.manifest = dataclasses.replace(self.manifest, items=items, dim=dim)
        return Index(self.manifest, table)

    def publish(self, index: Index, queries: np.ndarray) -> Manifest:
        """From now on the table of `index` is served, with as many probes as these queries want; all but it and the one before
        are removed."""
        probes, recall = calibrated(index, queries)
        self.manifest = dataclasses.replace(index.manifest, probes=probes, recall=recall, recall_queries=len(queries))
        write_manifest(self.uri, self.manifest)
        for name in table_names(self.database):
            if name not in (self.manifest.table, self.manifest.previous):
                self.database.drop_table(name)
        return self.manifest


def calibrated(index: Index, queries: np.ndarray) -> tuple[int, float]:
    """The fewest inverted lists by which searches find RECALL_WANTED of the exact results, and the recall; 0: all vectors."""
    if index.manifest.items < EXACT_BELOW:
        return 0, 1.0
    exact = best_keys(with_probes(index, 0), queries)
    for share in PROBED:
        probes = max(1, round(share * (index.manifest.items // LIST_ITEMS)))
        recall = overlap(best_keys(with_probes(index, probes), queries), exact)
        if recall >= RECALL_WANTED:
            return probes, recall
    return 0, 1.0


def with_probes(index: Index, probes: int) -> Index:
    return Index(dataclasses.replace(index.manifest, probes=probes), index.table)


def best_keys(index: Index, queries: np.ndarray) -> list[set[Any]]:
    """Of the RECALL_AT best items."""
    return [set(found[index.manifest.key].to_pylist()) for found in index.search(queries, RECALL_AT, columns=[])]


def overlap(found: list[set[Any]], best: list[set[Any]]) -> float:
    """Mean share of `best` that is in `found`: the recall."""
    return float(np.mean([len(one & wanted) / len(wanted) for one, wanted in zip(found, best, strict=True)]))


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
