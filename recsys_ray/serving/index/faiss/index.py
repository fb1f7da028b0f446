"""Opening and searching the vector index in faiss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.bundle.manifest import file_entry
from recsys_ray.serving.index.batched_search import BatchedSearch, FoundRows, checked_search, excluded_keys
from recsys_ray.serving.index.faiss.catalogue import RawColumns, open_raw_columns
from recsys_ray.serving.index.faiss.vectors import AllowedVectors, SearchEffort, VectorFiles, open_vectors
from recsys_ray.serving.index.manifest import IndexManifest, served_manifest
from recsys_ray.serving.index.vector_index import SCORE, Condition

BACKEND = "faiss"
CONDITIONS_REMEMBERED = 16
"""The conditions whose items an open index remembers, 8 bytes an item."""


@dataclass(frozen=True)
class FaissIndex:
    """A VectorIndex in memory. Conditions are SQL, as in LanceDB."""

    manifest: IndexManifest
    vectors: VectorFiles
    catalogue: pa.Table
    allowed: Callable[[str], AllowedVectors]
    """Returns the items that meet an SQL condition."""

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
        manifest, schema = self.manifest, self.catalogue.schema
        condition = checked_search(queries, manifest.dim, where, exclude)
        kept = columns if columns is not None else schema.names
        if unknown := set(kept) - set(schema.names):
            raise ValueError(f"no columns {', '.join(sorted(unknown))} in the index; it has {', '.join(schema.names)}")
        selected = self.catalogue.select(list(dict.fromkeys([manifest.key, *kept])))
        scan = _Scan(self, self.allowed(condition) if condition else None, selected)
        excluded = excluded_keys(exclude, len(queries), schema.field(manifest.key).type)
        return BatchedSearch(manifest.items, manifest.key, scan).run(queries, k, excluded)


@dataclass(frozen=True)
class _Scan:
    index: FaissIndex
    allowed: AllowedVectors | None
    columns: pa.Table

    def __call__(self, queries: np.ndarray, limit: int, *, exact: bool) -> FoundRows:
        """See FindRows."""
        manifest = self.index.manifest
        effort = SearchEffort(0 if exact else manifest.probes, manifest.candidates)
        found = self.index.vectors.nearest(queries, limit, effort, self.allowed)
        query, place = np.nonzero(found.positions >= 0)
        rows = self.columns.take(found.positions[query, place])
        return FoundRows(query, rows.append_column(SCORE, pa.array(found.scores[query, place])), found.exact)


def open_index(uri: str, model_version: str) -> FaissIndex:
    """Opens the index that is served at `uri`, after comparing its files with their checksums.

    Raises FileNotFoundError where there is no index, and ValueError where another model built it, or a file is damaged.
    """
    folder = index_folder(uri)
    manifest = served_manifest(str(folder), BACKEND, model_version)
    check_files(folder / manifest.table, manifest)
    return opened(folder / manifest.table, manifest)


def opened(folder: Path, manifest: IndexManifest) -> FaissIndex:
    """Opens the files of one version of an index."""
    vectors, catalogue = open_vectors(folder), open_raw_columns(folder)
    return FaissIndex(manifest, vectors, catalogue.columns, _remembering(catalogue))


def _remembering(catalogue: RawColumns) -> Callable[[str], AllowedVectors]:
    @lru_cache(CONDITIONS_REMEMBERED)
    def allowed(condition: str) -> AllowedVectors:
        return AllowedVectors(catalogue.positions_where(condition), len(catalogue.columns))

    return allowed


def index_folder(uri: str) -> Path:
    """Returns the folder that a URI names. Raises ValueError for another URL."""
    path = uri.removeprefix(f"{BACKEND}:")
    if not path or "://" in path:
        raise ValueError(
            f"--index {uri}: faiss maps its files into memory, so it wants a folder on a local or shared file system, as in "
            f"{BACKEND}:/shared/index. For an object store leave out '{BACKEND}:': LanceDB searches there"
        )
    return Path(path)


def check_files(folder: Path, manifest: IndexManifest) -> None:
    """Raises ValueError unless the folder has every file of the manifest, unchanged."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.bytes or file_entry(path) != entry:
            raise ValueError(f"{path} is damaged or missing: build the index again with jobs/build_index.py")
