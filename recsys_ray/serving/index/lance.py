"""The vector index in LanceDB, on disk or an object store: every item's vector with its raw columns.

`index.json` at the root says which table is served, which model built it and how well it searches. It is written last and
replaced atomically, so a build that fails leaves the served table as it was. The previous table stays until the next build, for
readers that have opened it. Small catalogues are searched exactly. Larger ones are searched through an inverted file (IVF): a
search scans as many inverted lists as it needs to find RECALL_WANTED of what exact search finds, which is measured at build time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.serving.index.batched_search import BatchedSearch, FoundRows, checked_search, excluded_keys
from recsys_ray.serving.index.lance_tables import add_inverted_lists, lance_tables, rows_where
from recsys_ray.serving.index.manifest import IndexManifest, served_manifest
from recsys_ray.serving.index.recall import EXACT_BELOW, PROBED_SHARES, RECALL_QUERIES, VECTORS_PER_LIST, SearchCalibration
from recsys_ray.serving.index.replacement import replacement
from recsys_ray.serving.index.vector_index import SCORE, VECTOR, Condition, IndexSource


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
        """See VectorIndex.search. Many queries in one call take a fraction of the time of as many calls."""
        manifest, schema = self.manifest, self.table.schema
        condition = checked_search(queries, manifest.dim, where, exclude)
        kept = columns if columns is not None else [name for name in schema.names if name != VECTOR]
        scan = _Scan(self, condition, list(dict.fromkeys([manifest.key, *kept])))
        excluded = excluded_keys(exclude, len(queries), schema.field(manifest.key).type)
        return BatchedSearch(manifest.items, manifest.key, scan).run(queries, k, excluded)


@dataclass(frozen=True)
class _Scan:
    index: LanceIndex
    condition: str
    columns: list[str]

    def __call__(self, queries: np.ndarray, limit: int, *, exact: bool) -> FoundRows:
        """See FindRows."""
        probes = 0 if exact else self.index.manifest.probes
        search = self.index.table.search(list(queries), vector_column_name=VECTOR).distance_type("dot")
        search = search.select([*self.columns, "_distance"]).limit(limit)
        found = rows_where(search.nprobes(probes) if probes else search.bypass_vector_index(), self.condition)
        query = found["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(found), np.int32)
        order = np.argsort(query, kind="stable")
        score = pc.subtract(1.0, found["_distance"]).cast(pa.float32())  # Lance's distance is 1 - dot product.
        rows = found.select(self.columns).append_column(SCORE, score)
        return FoundRows(query[order], rows.take(order), exact=not probes)


def open_index(uri: str, model_version: str) -> LanceIndex:
    """Opens the table that is served at `uri`.

    Raises FileNotFoundError where there is no index, and ValueError where another model built it.
    """
    manifest = served_manifest(uri, "lance", model_version)
    return LanceIndex(manifest, lance_tables(uri).open(manifest.table))


def write_index(uri: str, source: IndexSource) -> str:
    """Replaces the index at `uri`. Whatever fails, the served table stays.

    Raises LockHeldError while another build of this index runs.
    """
    with replacement(uri, source.model_version, lance_tables(uri).drop) as build:
        started = time.perf_counter()
        table = lance_tables(uri).create(build.table, pa.RecordBatchReader.from_batches(source.schema, source.batches))
        items, dim = table.count_rows(), source.schema.field(VECTOR).type.list_size
        if items >= EXACT_BELOW:
            add_inverted_lists(table, items // VECTORS_PER_LIST)
        print(f"index: {items:,} items embedded and indexed in {time.perf_counter() - started:.1f} s", flush=True)
        index = LanceIndex(IndexManifest(build.table, source.model_version, source.key, items, dim, probes=0), table)
        return str(build.publish(calibrated(index, source.sample_queries(RECALL_QUERIES))))


def calibrated(index: LanceIndex, queries: np.ndarray) -> IndexManifest:
    """Returns the manifest with the fewest probes by which searches find RECALL_WANTED of the exact results. 0 probes: exact."""
    lists = index.manifest.items // VECTORS_PER_LIST
    settings = [max(1, round(share * lists)) for share in PROBED_SHARES] if index.manifest.items >= EXACT_BELOW else []
    calibration = SearchCalibration(with_probes(index, 0), queries)
    probes, recall = calibration.first(settings, lambda probes: with_probes(index, probes)) or (0, 1.0)
    return dataclasses.replace(index.manifest, probes=probes, recall=recall, recall_queries=len(queries))


def with_probes(index: LanceIndex, probes: int) -> LanceIndex:
    """Returns the same index, searched with another number of probes."""
    return LanceIndex(dataclasses.replace(index.manifest, probes=probes), index.table)
