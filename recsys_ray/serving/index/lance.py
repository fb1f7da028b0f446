"""The vector index in LanceDB, on disk or an object store: every item's vector with its raw columns.

`index.json` at the root says which table is served, which model built it and how well it searches. It is written last and
replaced atomically, so a build that fails leaves the served table as it was. The previous table stays until the next build, for
readers that have opened it. Small catalogues are searched exactly. Larger ones are searched through an inverted file (IVF): a
search scans as many inverted lists as it needs to find RECALL_WANTED of what exact search finds, which is measured at build time.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.serving.index.manifest import IndexManifest, read_manifest, write_manifest
from recsys_ray.serving.index.recall import mean_recall, nearest_keys
from recsys_ray.serving.index.vector_index import SCORE, VECTOR, Condition, IndexSource

EXACT_BELOW = 50_000
"""Catalogues of fewer items are searched exactly, which takes a millisecond or two."""
VECTORS_PER_LIST = 1000
PROBED_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""The shares of the inverted lists that calibration tries, in this order."""
RECALL_WANTED = 0.995
RECALL_QUERIES = 200


@dataclass(frozen=True)
class LanceIndex:
    """A VectorIndex over one LanceDB table. Conditions are SQL."""

    manifest: IndexManifest
    table: Any
    """lancedb.table.Table"""

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
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries have shape {queries.shape}; this index wants [any, {self.manifest.dim}]")
        if exclude and len(exclude) != len(queries):
            raise ValueError(f"{len(exclude)} exclusion lists for {len(queries)} queries: wants one each")
        if not isinstance(where, str):
            raise ValueError(f"cannot search where {where!r}: LanceDB takes an SQL condition")
        kept = columns if columns is not None else [name for name in self.table.schema.names if name != VECTOR]
        wanted = list(dict.fromkeys([self.manifest.key, *kept]))
        search = _Search(self, k, where, wanted)
        excluded = [list(keys) for keys in exclude] or [[] for _ in queries]
        return [search.run(query, keys) for query, keys in zip(queries, excluded, strict=True)]


@dataclass(frozen=True)
class _Search:
    index: LanceIndex
    k: int
    where: str
    columns: list[str]

    def run(self, query: np.ndarray, excluded: list[Any]) -> pa.Table:
        manifest, limit = self.index.manifest, self.k + len(excluded)
        found = self._nearest(query, limit, manifest.probes)
        if manifest.probes and found.num_rows < min(limit, manifest.items):
            # The lists scanned hold fewer items than the limit that pass the condition.
            found = self._nearest(query, limit, probes=0)
        if excluded:
            key = found[manifest.key]
            found = found.filter(pc.invert(pc.is_in(key, value_set=pa.array(excluded, key.type))))
        score = pc.subtract(1.0, found["_distance"])  # Lance's distance is 1 - dot product.
        return found.drop_columns(["_distance"]).append_column(SCORE, score).slice(0, self.k)

    def _nearest(self, query: np.ndarray, limit: int, probes: int) -> pa.Table:
        search = self.index.table.search(query, vector_column_name=VECTOR).distance_type("dot")
        search = search.select([*self.columns, "_distance"]).limit(limit)
        search = search.nprobes(probes) if probes else search.bypass_vector_index()
        try:
            return (search.where(self.where, prefilter=True) if self.where else search).to_arrow()
        except (ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"cannot search where {self.where!r}: {error}" if self.where else str(error)) from error


def open_index(uri: str, model_version: str) -> LanceIndex:
    """Opens the table that is served at `uri`.

    Raises FileNotFoundError where there is no index, and ValueError where another model built it.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        raise FileNotFoundError(f"no index at {uri}: build one with jobs/build_index.py")
    if manifest.model_version != model_version:
        raise ValueError(
            f"the index at {uri} was built by model {manifest.model_version}, and this is model {model_version}: their vectors "
            "do not belong together. Build it again with jobs/build_index.py"
        )
    return LanceIndex(manifest, _connect(uri).open_table(manifest.table))


def write_index(uri: str, source: IndexSource) -> str:
    """Replaces the index at `uri`. Whatever fails, the served table stays."""
    with LanceWriter.begin(uri, source.model_version, source.key) as writer:
        started = time.perf_counter()
        index = writer.write(source.schema, source.batches)
        print(f"index: {index.manifest.items:,} items embedded and indexed in {time.perf_counter() - started:.1f} s", flush=True)
        return str(writer.publish(index, source.sample_queries(RECALL_QUERIES)))


@dataclass
class LanceWriter:
    """A writer of the next table of an index. `with LanceWriter.begin(...) as writer:` drops the table where the body fails."""

    uri: str
    manifest: IndexManifest
    database: Any
    """lancedb.db.DBConnection"""

    @staticmethod
    def begin(uri: str, model_version: str, key: str) -> LanceWriter:
        """Chooses the name of the next table; nothing is written yet."""
        served = read_manifest(uri)
        table = f"items_{model_version}_{uuid.uuid4().hex[:8]}"
        manifest = IndexManifest(table, model_version, key, 0, 0, 0, previous=served.table if served else "")
        return LanceWriter(uri, manifest, _connect(uri))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.manifest.table in table_names(self.database):
            self.database.drop_table(self.manifest.table)

    def write(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> LanceIndex:
        """Writes the rows, which have a VECTOR column of fixed size. Only the caller can search the table that is returned."""
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        table = self.database.create_table(self.manifest.table, reader, schema=schema)
        items, dim = table.count_rows(), schema.field(VECTOR).type.list_size
        if items >= EXACT_BELOW:
            from lancedb.index import IvfFlat  # as in `_connect`

            table.create_index(VECTOR, config=IvfFlat(distance_type="dot", num_partitions=items // VECTORS_PER_LIST))
        self.manifest = dataclasses.replace(self.manifest, items=items, dim=dim)
        return LanceIndex(self.manifest, table)

    def publish(self, index: LanceIndex, queries: np.ndarray) -> IndexManifest:
        """Serves the table of `index` from now on, with as many probes as `queries` need.

        Drops all other tables except the one that was served before.
        """
        probes, recall = calibrated(index, queries)
        self.manifest = dataclasses.replace(index.manifest, probes=probes, recall=recall, recall_queries=len(queries))
        write_manifest(self.uri, self.manifest)
        for name in table_names(self.database):
            if name not in (self.manifest.table, self.manifest.previous):
                self.database.drop_table(name)
        return self.manifest


def calibrated(index: LanceIndex, queries: np.ndarray) -> tuple[int, float]:
    """Returns the fewest probes by which searches find RECALL_WANTED of the exact results, and the recall. 0 probes: exact."""
    if index.manifest.items < EXACT_BELOW:
        return 0, 1.0
    exact = nearest_keys(with_probes(index, 0), queries)
    for share in PROBED_SHARES:
        probes = max(1, round(share * (index.manifest.items // VECTORS_PER_LIST)))
        recall = mean_recall(nearest_keys(with_probes(index, probes), queries), exact)
        if recall >= RECALL_WANTED:
            return probes, recall
    return 0, 1.0


def with_probes(index: LanceIndex, probes: int) -> LanceIndex:
    """Returns the same index, searched with another number of probes."""
    return LanceIndex(dataclasses.replace(index.manifest, probes=probes), index.table)


def table_names(database: Any) -> list[str]:
    """Returns the names of all tables: LanceDB lists only the first few by default."""
    return list(database.table_names(limit=1 << 20))


def _connect(uri: str) -> Any:
    # Not at the top: once it is loaded, every process that this one starts, Ray's among them, prints a warning.
    import lancedb

    return lancedb.connect(uri)
